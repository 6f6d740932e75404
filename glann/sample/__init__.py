"""Drawing images with a trained generator."""
