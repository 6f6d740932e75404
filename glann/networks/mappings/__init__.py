"""Mappings: noise to latents."""
