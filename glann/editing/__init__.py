"""Directions in latent space, and moving along them."""
