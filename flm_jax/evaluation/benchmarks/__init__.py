"""Downstream benchmarks."""
