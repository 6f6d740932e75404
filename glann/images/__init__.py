"""Images as tensors and as PNG files."""
