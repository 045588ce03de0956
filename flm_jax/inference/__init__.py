"""Uses of a loaded model: sampling, scoring, prompts and pictures of trajectories."""
