"""Probability paths from noise, or from a mask, to tokens, one in each file."""
