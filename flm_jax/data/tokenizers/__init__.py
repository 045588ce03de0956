"""Tokenizers: building, training, saving and loading."""
