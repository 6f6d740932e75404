"""The `glo` section of params.yaml."""

from typing import Literal

from pydantic import (
    Field,
)

from glann.networks.decoders.settings import Decoder, Origin
from glann.runtime.settings import LARGEST, PathText, Section
from glann.training.settings import ParameterGroup, Rate

LESS_MEMORY = "lower glo.batch_size or glo.decoder.width, or set compute.precision to bfloat16"
"""what to advise if memory runs out"""
EARLIER_FILES = ("prepare/images.npy", "glo/latents.npy", "glo/decoder.safetensors")
"""what is read of an earlier run, below its folder ``data``"""


class Loss(Section):
    """How reconstructions are compared with images in training."""

    kind: Literal["l1", "laplacian", "perceptual"] = "laplacian"
    """l1, laplacian (pyramid, from the GLO paper) or perceptual (VGG-16 features, from the GLANN paper)"""
    levels: int = Field(4, ge=1, le=5)
    """for perceptual: number of VGG-16 levels to compare, from conv1_2 (1) to conv5_3 (5)"""
    pixel_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """for perceptual: weight of the L1 distance between pixels (in the paper: 1)"""
    crop: int | None = Field(None, ge=16, le=1024)
    """for perceptual: compare full-scale features only on a random square with sides of this many pixels, a
    new one in each step, to save time; null: on whole images"""
    coarse: float = Field(0.0, ge=0, lt=1)
    """for perceptual: fraction of the training in which features are those of images of half the size, so
    that, without crop, a step takes less than half the time; 0: never"""
    texture: float = Field(0.0, ge=0, le=5)
    """for perceptual, after the coarse part: weight of the distance between textures, which makes images
    sharper; differences at levels 1 and 2 are divided by 1 + texture, except at the highest level compared,
    so use 3 or more levels; 0: none"""
    cache_gib: float = Field(4, ge=0, allow_inf_nan=False)
    """for perceptual without crop, up to 64 px (128 px for coarse): cache the features of the training images
    if they fit into this much memory, in GiB per process; otherwise they are computed in every step; 0: no
    cache"""
    weights: PathText | None = None
    """for perceptual: file of VGG-16 weights, .safetensors or torchvision's .pth; null: download them"""

    @property
    def origin(self) -> Origin:
        """What a decoder that was trained by it says of itself."""
        return Origin(
            loss=self.kind, levels=self.levels, pixel_weight=self.pixel_weight, texture=self.texture
        )


class Glo(Section):
    """Latents and decoder, optimised together (GLO)."""

    latent_dim: int = Field(64, ge=2, le=4096)
    """size of a latent (in the paper: 64)"""
    latent_init: Literal["pca", "pca_whitened", "random"] = "pca"
    """start latents from the images' principal components (pca, pca_whitened) or from noise (random)"""
    start_from: PathText | None = None
    """folder data of an earlier run, or a copy of it: its decoder and its latents are the start, instead of
    latent_init; null: from scratch"""
    latent_noise: float = Field(0.4, ge=0, le=10)
    """noise added to latents in training, which have length 1: for each latent and step, its root-mean-square
    length is drawn between 0 and this value (in the paper: 0)"""
    decoder: Decoder = Decoder()
    loss: Loss = Loss()
    epochs: int = Field(20, ge=1, le=LARGEST)
    """passes over the training images"""
    batch_size: int = Field(128, ge=1, le=LARGEST)
    """images per step"""
    latent_lr: Rate = 0.01
    """learning rate of the latents (in the paper: 0.01)"""
    decoder_lr: Rate = 0.001
    """learning rate of the decoder (in the paper: 0.001)"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rate over time: cosine (decays to 0) or constant"""
    ema: float = Field(0.99, ge=0, lt=1)
    """decay per step of the decoder's moving average, which becomes the result; 0: no averaging"""
    parameter_groups: list[ParameterGroup] = Field([ParameterGroup(match="*", gradient="normalize")])
    """settings per layer; match is a pattern of parameter names; gradient is none, clip_norm, clip_value or
    normalize; limit is the largest norm, the largest absolute value, or the norm to scale to; e.g.
    [{match: "to_image.*", lr_multiplier: 0.5, gradient: clip_norm, limit: 1.0}]"""
