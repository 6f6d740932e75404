"""Data that the measurements share and that need no download."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from glann.runtime.randomness import stream


def digits() -> NDArray[np.uint8]:
    """Return scikit-learn's digits at 28 px, uint8 [1797, 28, 28, 1]."""
    small = torch.from_numpy(load_digits().images).float()[:, None] / 16
    large = F.interpolate(small, size=(28, 28), mode="bicubic").clamp(0, 1)
    return (large * 255).round().byte().permute(0, 2, 3, 1).numpy()


def latent_cloud(n: int, seed: int = 0) -> Tensor:
    """Return unit rows float32 [n, 64] with a decaying spectrum, as latents have."""
    spectrum = torch.arange(1, 65) ** -0.5
    return F.normalize(torch.randn(n, 64, generator=stream(seed, "cloud")) * spectrum, dim=1)
