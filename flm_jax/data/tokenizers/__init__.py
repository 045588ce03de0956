"""Tokenizers: made, trained, saved, loaded."""
