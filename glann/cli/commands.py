"""All commands together."""

from glann.cli import formats, latents, photographs, pipeline, sampling
from glann.cli.app import run

__all__ = ["formats", "latents", "photographs", "pipeline", "run", "sampling"]
