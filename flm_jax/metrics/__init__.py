"""Figures of tokens and of networks, without files or configurations."""
