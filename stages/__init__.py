"""One script per stage of dvc.yaml, `python -m stages.<stage>`."""
