"""Flows as pure mathematics, without networks: probability paths, noise and times."""
