"""Synthetic tasks with exact distributions and scores."""
