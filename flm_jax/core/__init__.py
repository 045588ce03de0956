"""What every package may use: array aliases, errors, files, the interface of networks."""
