"""From configurations to functions."""
