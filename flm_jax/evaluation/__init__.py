"""Measuring and comparing trained models."""
