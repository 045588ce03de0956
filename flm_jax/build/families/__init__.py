"""One family of models in each file."""
