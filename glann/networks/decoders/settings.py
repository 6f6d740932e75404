"""The settings of a decoder, `glo.decoder` in params.yaml."""

from typing import Literal

from pydantic import (
    Field,
)

from glann.runtime.settings import Section

SIZES_MADE = {
    "infogan": (28, 32),
    "dcgan": (64, 128, 256, 512, 1024),
    "residual": (16, 32, 64, 128, 256, 512, 1024),
    "smooth": (16, 28, 32, 64, 128, 256, 512, 1024),
}


class Decoder(Section):
    """The network from latents to images."""

    kind: Literal["infogan", "dcgan", "residual", "smooth"] = "residual"
    """infogan (from the paper, 28 and 32 px), dcgan (64 to 1024 px), residual (16 to 1024 px) or smooth (28,
    and 16 to 1024 px; better on photographs, slower)"""
    width: int = Field(32, ge=4, le=1024)
    """channels at the highest resolution (smooth: at half of it); lower resolutions have more (in the
    paper: 64)"""
    batch_norm: bool = True
    """for infogan and dcgan: use batch normalisation (in the paper: true, except for cifar10)"""
