"""The settings of a decoder, `glo.decoder` in params.yaml."""

from typing import Annotated, Literal

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


class Origin(Section):
    """How the images of a decoder were prepared and compared in training: `prepare` and `glo.loss`."""

    loss: Literal["l1", "laplacian", "perceptual"] = "laplacian"
    levels: int = Field(4, ge=1, le=5)
    pixel_weight: float = Field(1.0, ge=0)
    texture: float = Field(0.0, ge=0)
    fit: Literal["crop", "pad"] = "crop"
    background: list[Annotated[int, Field(ge=0, le=255)]] = Field([255, 255, 255], min_length=3, max_length=3)
