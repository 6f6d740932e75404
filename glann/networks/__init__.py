"""The networks: decoders, mappings, and VGG-16."""
