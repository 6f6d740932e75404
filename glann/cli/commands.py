"""All commands together."""

from glann.cli import formats, latents, peers, photographs, pipeline, sampling
from glann.cli.app import run

__all__ = ["formats", "latents", "peers", "photographs", "pipeline", "run", "sampling"]
