"""`python -m glann` does what `glann` does."""

from glann.cli import main

main()
