"""GLANN: image generation without an adversary (Hoshen, Li, Malik, CVPR 2019, arXiv:1812.08985)."""

import os
from typing import TYPE_CHECKING, Any

# OpenMP threads wait for each other by spinning, for milliseconds by default: beside another busy process a
# step took ten times as long. This must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from glann.generator import Generator

__all__ = ["Generator"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only those who ask for the generator pay for it.
    if name == "Generator":
        from glann.generator import Generator  # noqa: PLC0415

        return Generator
    raise AttributeError(f"module 'glann' has no attribute {name!r}")
