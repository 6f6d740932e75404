"""Latents and decoder, optimised together (GLO)."""
