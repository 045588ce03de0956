"""Imports and exports weights of other projects."""
