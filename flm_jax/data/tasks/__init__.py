"""Synthetic tasks with exact laws and scores."""
