"""The mapping from noise to latents, fitted by nearest-neighbour matching (IMLE)."""
