"""One method of sampling in each file."""
