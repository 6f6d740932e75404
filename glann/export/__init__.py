"""A trained generator in other formats."""
