"""A network with its vocabulary head, as losses and samplers call it."""
