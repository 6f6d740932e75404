"""Parts of GLO made otherwise, for the study: decoders, and how latents step."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glann.decoders import ModulatedBlock, ResidualDecoder
from glann.latents import LatentTable


class TwoBlocks(nn.Sequential):
    """Two blocks at every resolution."""

    def __init__(self, width: int, style_dim: int):
        super().__init__(ModulatedBlock(width, style_dim), ModulatedBlock(width, style_dim))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Refine features [b, w, h, h] under style [b, s]."""
        for block in self:
            x = block(x, style)
        return x


class NormalizedBlock(ModulatedBlock):
    """Group normalisation (arXiv:1803.08494) before each convolution, groups of 8 channels."""

    def __init__(self, width: int, style_dim: int):
        super().__init__(width, style_dim)
        self.before = nn.GroupNorm(max(1, width // 8), width)
        self.between = nn.GroupNorm(max(1, width // 8), width, affine=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Refine features [b, w, h, h] under style [b, s]."""
        scale, shift = self.modulation(style)[:, :, None, None].chunk(2, dim=1)
        y = torch.addcmul(shift, self.between(self.first(F.silu(self.before(x)))), 1 + scale)
        return x + self.second(F.silu(y))


class NoisyBlock(ModulatedBlock):
    """Normal noise at every pixel, a learned strength per channel (StyleGAN, arXiv:1812.04948)."""

    def __init__(self, width: int, style_dim: int):
        super().__init__(width, style_dim)
        self.strength = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Refine features [b, w, h, h] under style [b, s]."""
        noise = torch.randn_like(x[:, :1])
        return super().forward(x + self.strength[:, None, None] * noise, style)


class UpsamplingDecoder(ResidualDecoder):
    """Leaves the doubling of the resolution to `narrow`, which subclasses choose."""

    def forward(self, latents: Tensor) -> Tensor:
        """Decode float [b, d] to float [b, c, size, size]."""
        style = F.silu(self.dense(latents * latents.shape[1] ** 0.5))
        x = self.to_grid(style).view(len(style), -1, 4, 4).contiguous(memory_format=torch.channels_last)
        x = self.blocks[0](x, style)
        for up, block in zip(self.narrow, self.blocks[1:], strict=True):
            x = block(up(x), style)
        return F.pixel_shuffle(self.to_image(F.silu(x)), 2).sigmoid()


class BilinearDecoder(UpsamplingDecoder):
    """Doubles by bilinear interpolation instead of repetition."""

    def __init__(self, latent_dim: int, size: int, channels: int, width: int):
        super().__init__(latent_dim, size, channels, width)
        doubling = nn.Upsample(scale_factor=2, mode="bilinear")
        self.narrow = nn.ModuleList(nn.Sequential(narrow, doubling) for narrow in self.narrow)


class TransposedDecoder(UpsamplingDecoder):
    """Doubles by transposed convolutions of 4 x 4 instead of repetition."""

    def __init__(self, latent_dim: int, size: int, channels: int, width: int):
        super().__init__(latent_dim, size, channels, width)
        widths = [min(width << k, 8 * width) for k in range(len(self.narrow), -1, -1)]
        self.narrow = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(widths))


class UnsavedTable(LatentTable):
    """What has more to remember than is saved: the study does not resume in the midst of a training."""

    def like(self, n: int) -> dict[str, Tensor]:
        """Ask a checkpoint for nothing."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}


class FrozenLate(UnsavedTable):
    """Latents stand still in the second half of a cosine schedule, so that the decoder settles on them."""

    def __init__(self, latents: Tensor):
        super().__init__(latents)
        self._highest = 0.0

    def step(self, rows: Tensor, latents: Tensor, lr: float, scale: float) -> None:
        """Step, see `LatentTable`."""
        self._highest = max(self._highest, lr)
        if lr > 0.5 * self._highest:
            super().step(rows, latents, lr, scale)


class ProjectedSeldom(LatentTable):
    """Latents return to the sphere every 5th time that they step; the decoder sees them where they are.

    Only without noise on the latents, which projects them too.
    """

    EVERY = 5

    def step(self, rows: Tensor, latents: Tensor, lr: float, scale: float) -> None:
        """Step, see `LatentTable`."""
        before = latents.detach().clone()
        super().step(rows, latents, lr, scale)
        free = self.steps[rows] % self.EVERY != 0
        moved = before - lr * self._direction(rows)
        self.latents[rows] = torch.where(free[:, None], moved, F.normalize(moved, dim=1))

    def _direction(self, rows: Tensor) -> Tensor:
        steps = self.steps[rows][:, None]
        moment = self.moment[rows] / (1 - 0.5**steps)
        return moment / ((self.square[rows] / (1 - 0.999**steps)).sqrt() + 1e-8)


class Penalised(UnsavedTable):
    """A pull towards the mean and covariance of the first latents.

    The gradient of a batch's squared distance from those moments is added to the loss's, a tenth as long.
    """

    SHARE = 0.1

    def __init__(self, latents: Tensor):
        super().__init__(latents)
        self._mean = latents.mean(dim=0)
        self._covariance = torch.cov(latents.T)

    def step(self, rows: Tensor, latents: Tensor, lr: float, scale: float) -> None:
        """Step, see `LatentTable`."""
        assert latents.grad is not None
        with torch.enable_grad():
            free = latents.detach().requires_grad_()
            apart = (free.mean(dim=0) - self._mean).square().sum()
            apart = apart + (torch.cov(free.T) - self._covariance).square().sum()
            (pull,) = torch.autograd.grad(apart, free)
        weight = self.SHARE * latents.grad.norm() / pull.norm().clamp_min(1e-12)
        latents.grad.add_(weight * pull)
        super().step(rows, latents, lr, scale)


def free_output(mapping: Any, output: Tensor) -> Tensor:
    """Leave the mapping's output where it is, instead of `MappingNetwork.project`."""
    return output if output.dtype == torch.float64 else output.float()
