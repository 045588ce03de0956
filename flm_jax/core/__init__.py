"""Definitions that every package may use: array aliases, errors, files, the network interface."""
