"""The `imle` section of params.yaml."""

from typing import Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from glann.neighbors.indexes import parse_index
from glann.networks.mappings.settings import Mapping
from glann.runtime.settings import LARGEST, PathText, Section
from glann.training.settings import ParameterGroup, Rate

LESS_MEMORY = "lower imle.batch_size, imle.candidates or imle.mapping.width, or train on fewer images"
"""what to advise if memory runs out"""


class Imle(Section):
    """The mapping, fitted by nearest-neighbour matching (IMLE)."""

    noise_dim: int = Field(32, ge=1, le=4096)
    """size of the noise vector (in the paper: 32)"""
    mapping: Mapping = Mapping()
    conditional: bool = False
    """fit the mapping to the classes of the images, so that the class of a sample can be chosen"""
    start_from: PathText | None = None
    """generator.safetensors of an earlier run, or a mapping's own file, to start from; null: from scratch"""
    candidates: float = Field(2, gt=0, le=1000)
    """candidates drawn per latent in each search (in the paper: 2)"""
    index: str = "Flat"
    """Faiss index: Flat is exact; from a few hundred thousand latents on e.g. IVF4096,Flat;nprobe=8, see
    docs/imle.md"""
    refresh: int = Field(1, ge=1, le=LARGEST)
    """epochs from one search for nearest candidates to the next (in the paper: 1)"""
    epochs: int = Field(60, ge=1, le=LARGEST)
    """passes over the latents, each with new candidates unless refresh is above 1 (in the paper: 50)"""
    batch_size: int = Field(128, ge=2, le=LARGEST)
    """latents per step"""
    loss: Literal["distance", "squared"] = "distance"
    """regression loss of a matched pair: distance, or squared for its square (in the paper: squared)"""
    lr: Rate = 0.003
    """learning rate (in the paper: 0.001)"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rate over time: cosine (decays to 0) or constant"""
    ema: float = Field(0.99, ge=0, lt=1)
    """decay per step of the mapping's moving average, which becomes the result; 0: no averaging"""
    correct_moments: bool = True
    """correct the mapping so that its outputs have the latents' mean and covariance (in the paper: false)"""
    residuals: float = Field(0.0, ge=0, le=1)
    """for more varied digits, add to each sample this fraction of the difference between a training latent
    nearby and its match; the file then tells more about the training images (in the paper: 0)"""
    parameter_groups: list[ParameterGroup] = Field([])
    """settings per layer, as in glo"""

    @model_validator(mode="after")
    def _known_index(self) -> Self:
        parse_index(self.index)
        return self
