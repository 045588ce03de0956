"""Corpora on disk, tokenizers, fixed-length examples and batches: NumPy and grain alone."""
