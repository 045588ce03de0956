"""Measures and compares trained models."""
