"""Builds models, flows, objectives and samplers from configurations."""
