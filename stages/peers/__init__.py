"""The stages of peers/dvc.yaml: rivals of GLANN, and the comparison with them."""
