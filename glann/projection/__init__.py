"""Latents for pictures that a model has never seen."""
