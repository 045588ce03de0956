"""One training run: program, step, loop, logs."""
