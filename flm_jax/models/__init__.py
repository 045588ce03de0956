"""Networks; this package alone imports Flax."""
