"""Distillation: the routes from a flow to a flow map, and distillation of discrete diffusion."""
