"""The `imle` section of params.yaml."""

from typing import Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from glann.neighbors.indexes import parse_index
from glann.networks.mappings.settings import Mapping
from glann.runtime.settings import LARGEST, Section
from glann.training.settings import ParameterGroup, Rate

LESS_MEMORY = "lower imle.batch_size, imle.candidates or imle.mapping.width, or train on fewer images"
"""what to advise if memory runs out"""


class Imle(Section):
    """The mapping, fitted by nearest-neighbour matching (IMLE)."""

    noise_dim: int = Field(32, ge=1, le=4096)
    """numbers per noise draw (the paper: 32)"""
    mapping: Mapping = Mapping()
    candidates: float = Field(2, gt=0, le=1000)
    """noise draws per latent in each epoch's search (the paper: 2)"""
    index: str = "Flat"
    """Faiss index string: Flat is exact; for millions e.g. IVF4096,Flat;nprobe=8; docs/imle.md lists all"""
    refresh: int = Field(1, ge=1, le=LARGEST)
    """epochs between two searches for the nearest candidates (the paper: 1)"""
    epochs: int = Field(60, ge=1, le=LARGEST)
    """passes over the latents (the paper: 50)"""
    batch_size: int = Field(128, ge=2, le=LARGEST)
    """latents per step"""
    loss: Literal["distance", "squared"] = "distance"
    """what a matched pair costs: its distance, or that squared (the paper)"""
    lr: Rate = 0.003
    """Adam's learning rate (the paper: 0.001)"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rate over the run: cosine (down to 0) or constant"""
    ema: float = Field(0.99, ge=0, lt=1)
    """decay per step of the mapping's moving average, which is the one kept; 0: the last weights"""
    correct_moments: bool = True
    """whether outputs, before residuals, are given the latents' mean and covariance (the paper: false)"""
    residuals: float = Field(0.0, ge=0, le=1)
    """share of matched pairs' residuals that samples nearby get, for variety; 0: none (the paper)"""
    parameter_groups: list[ParameterGroup] = Field([])
    """settings by layer, as in glo"""

    @model_validator(mode="after")
    def _known_index(self) -> Self:
        parse_index(self.index)
        return self
