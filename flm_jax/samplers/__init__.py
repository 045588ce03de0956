"""Samplers, one method in each file."""
