"""Probability paths from noise, or from a mask, to tokens: one file for each."""
