"""Small latents and settings, with which a mapping is fitted in a second."""

import math

import torch

from glann.imle.settings import Imle
from glann.runtime.randomness import stream

SMALL = Imle(noise_dim=2, mapping={"width": 64, "depth": 2}, epochs=40, lr=0.003)


def clusters(n: int = 600) -> torch.Tensor:
    """Five tight groups on the unit circle, float32 [n, 2]."""
    angles = torch.arange(n) % 5 * (2 * math.pi / 5) + 0.05 * torch.randn(n, generator=stream(0, "angles"))
    return torch.stack([angles.cos(), angles.sin()], dim=1)
