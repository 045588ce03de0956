"""Probability paths as pure mathematics, without networks."""
