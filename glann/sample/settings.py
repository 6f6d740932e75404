"""The `sample` section of params.yaml."""

from pydantic import (
    Field,
)

from glann.runtime.settings import LARGEST, Section

LESS_MEMORY = "lower sample.count"
"""what to advise if memory runs out"""


class Sample(Section):
    """Which pictures the sample stage draws."""

    count: int = Field(64, ge=1, le=LARGEST)
    """number of images in the grid and in the folder of single images; of a conditional model, shared equally
    between classes"""
    seed: int = Field(0, ge=0, lt=2**63)
    """which images to draw; the same seed gives the same images"""
    truncation: float = Field(1.0, gt=0, le=10)
    """factor on the noise; below 1, images are more typical and less varied"""
    interpolations: int = Field(6, ge=1, le=64)
    """rows of interpolation.png; each leads from one sample to another"""
    interpolation_steps: int = Field(10, ge=2, le=64)
    """images per row of interpolation.png, including both ends"""
