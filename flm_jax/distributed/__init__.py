"""Runs over many devices and processes."""
