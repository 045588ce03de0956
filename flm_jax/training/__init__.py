"""Training of a model: program, step, loop and logs."""
