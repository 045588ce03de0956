"""Networks; the only importer of Flax."""
