"""Families of models, one in each file."""
