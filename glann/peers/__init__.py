"""Rivals of GLANN, trained on the same images with the same decoder, and compared with it."""
