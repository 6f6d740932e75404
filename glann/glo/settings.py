"""The `glo` section of params.yaml."""

from typing import Literal

from pydantic import (
    Field,
)

from glann.networks.decoders.settings import Decoder
from glann.runtime.settings import LARGEST, Section, Text
from glann.training.settings import ParameterGroup, Rate

LESS_MEMORY = "lower glo.batch_size or glo.decoder.width, or set compute.precision to bfloat16"
"""what to advise if memory runs out"""


class Loss(Section):
    """What "looks like" means while latents and decoder are trained."""

    kind: Literal["l1", "laplacian", "perceptual"] = "laplacian"
    """l1, laplacian (the GLO paper's pyramid), perceptual (the GLANN paper's VGG-16 features plus L1)"""
    levels: int = Field(4, ge=1, le=5)
    """perceptual: VGG-16 blocks compared, from conv1_2 (1) to conv5_3 (5)"""
    pixel_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """perceptual: weight of the L1 distance of the pixels beside the features (the paper: 1)"""
    crop: int | None = Field(None, ge=16, le=1024)
    """perceptual: features are compared on a random square of so many pixels, drawn anew each step, to
    save time; null: on the whole image"""
    cache_gib: float = Field(4, ge=0, allow_inf_nan=False)
    """perceptual, crop null: memory for features of the training images, GiB per process; they are computed
    once if they fit, else at each step; 0: never kept"""
    weights: Text | None = None
    """perceptual: VGG-16 weights, .safetensors or torchvision's .pth; null: torchvision downloads them"""


class Glo(Section):
    """Latents and decoder, optimised together (GLO)."""

    latent_dim: int = Field(64, ge=2, le=4096)
    """numbers per latent (the paper: 64)"""
    latent_init: Literal["pca", "pca_whitened", "random"] = "pca"
    """the images' principal components, as they are or whitened, or normal noise; all on the unit sphere"""
    latent_noise: float = Field(0.25, ge=0, le=10)
    """length of the noise on a latent, of length 1, when it is decoded in training (the paper: 0)"""
    decoder: Decoder = Decoder()
    loss: Loss = Loss()
    epochs: int = Field(20, ge=1, le=LARGEST)
    """passes over the training images"""
    batch_size: int = Field(128, ge=1, le=LARGEST)
    """images per step"""
    latent_lr: Rate = 0.01
    """Adam's learning rate of the latents (the paper: 0.01)"""
    decoder_lr: Rate = 0.001
    """Adam's learning rate of the decoder (the paper: 0.001)"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """learning rates over the run: cosine (down to 0) or constant"""
    ema: float = Field(0.99, ge=0, lt=1)
    """decay per step of the decoder's moving average, which is the one kept; 0: the last weights"""
    parameter_groups: list[ParameterGroup] = Field([ParameterGroup(match="*", gradient="normalize")])
    """settings by layer, e.g. [{match: "to_image.*", lr_multiplier: 0.5, gradient: clip_norm, limit: 1.0}]"""
