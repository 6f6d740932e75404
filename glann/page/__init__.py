"""A page in the browser over a trained generator."""
