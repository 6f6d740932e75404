"""The settings of a mapping, `imle.mapping` in params.yaml."""

from typing import Literal

from pydantic import (
    Field,
)

from glann.runtime.settings import Section


class Mapping(Section):
    """The network from noise to latents."""

    kind: Literal["mlp", "residual"] = "residual"
    """mlp (from the paper, with batch normalisation) or residual (blocks with layer normalisation)"""
    width: int = Field(256, ge=4, le=8192)
    """units per hidden layer (in the paper: 128)"""
    depth: int = Field(3, ge=1, le=64)
    """hidden layers of mlp (in the paper: 2), or blocks of residual"""
