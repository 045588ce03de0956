"""Corpora on disk, tokenizers, fixed-length examples and batches, with NumPy and grain alone."""
