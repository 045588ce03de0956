"""Documents become files of tokens."""
