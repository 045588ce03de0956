"""Preparation of documents as files of tokens."""
