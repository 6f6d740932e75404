"""A velocity field from noise to latents (flow matching, arXiv:2210.02747, with straight paths)."""

import torch
from torch import Tensor, nn

from glann.networks.mappings.residual import residual_mlp

DEPTH = 4  # blocks of the network
EULER_STEPS = 16


class Velocity(nn.Module):
    """The velocity of points float32 [b, d] at times float32 [b, 1], from 0 (noise) to 1 (latents)."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.dim = dim
        self.network = residual_mlp(dim + 1, dim, width, DEPTH)

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        """Return float32 [b, d]."""
        return self.network(torch.cat([points, times], dim=1))


def mismatch(velocity: Velocity, latents: Tensor) -> Tensor:
    """Compare the field with straight paths from noise to latents float32 [b, d], each at a random time.

    It is the mean square of ``v((1 - t) e + t z, t) - (z - e)`` (equation 23 with no noise left at the end),
    float32 [].
    """
    noise = torch.randn_like(latents)
    # One time in each of b equal parts of [0, 1]: the mean over times then varies less from batch to batch.
    parts = torch.arange(len(latents), device=latents.device)[:, None]
    times = (parts + torch.rand(len(latents), 1, device=latents.device)) / len(latents)
    points = torch.lerp(noise, latents, times)
    return (velocity(points, times) - (latents - noise)).square().mean()


@torch.no_grad()
def carried(velocity: Velocity, noise: Tensor) -> Tensor:
    """Carry noise float32 [n, d] along the field in Euler steps, and return where it ends."""
    points = noise
    for step in range(EULER_STEPS):
        times = torch.full((len(points), 1), step / EULER_STEPS, device=points.device)
        points = points + velocity(points, times) / EULER_STEPS
    return points
