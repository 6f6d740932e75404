"""A decoder of residual blocks that are modulated by the latent."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glann.networks.decoders.settings import Decoder
from glann.networks.layers import START_GREY


class ModulatedDecoder(nn.Module):
    """Residual blocks from 4 px to half the size, modulated by the latent, then a pixel shuffle.

    The latent scales and shifts the features of every block (FiLM, arXiv:1709.07871), so it has an effect at
    all resolutions, not only at 4 px. The last doubling is a pixel shuffle (arXiv:1609.05158): each feature
    vector draws 2 x 2 pixels, at a quarter of the cost of convolutions at full resolution.
    """

    def __init__(self, latent_dim: int, size: int, channels: int, config: Decoder):
        super().__init__()
        width = config.width
        doublings = int(math.log2(size)) - 3  # from 4 px to size / 2
        widths = [min(width << k, 8 * width) for k in range(doublings, -1, -1)]
        self.dense = nn.Linear(latent_dim, widths[0])
        self.to_grid = nn.Linear(widths[0], widths[0] * 16)
        self.blocks = nn.ModuleList(ModulatedBlock(w, widths[0]) for w in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.to_image = nn.Conv2d(width, 4 * channels, 3, padding=1)
        self.to_image.init_scale = START_GREY  # type: ignore[assignment]

    def forward(self, latents: Tensor) -> Tensor:
        """Decode float [b, d] to float [b, c, size, size]."""
        style = F.silu(self.dense(latents * math.sqrt(latents.shape[1])))  # => [b, w0]
        x = self.to_grid(style).unflatten(1, (-1, 4, 4))
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.blocks[0](x, style)
        for narrow, block in zip(self.narrow, self.blocks[1:], strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="nearest")
            x = block(x, style)
        x = self.to_image(F.silu(x))
        return F.pixel_shuffle(x, 2).sigmoid()


class ModulatedBlock(nn.Module):
    """x + conv(silu((1 + scale) * conv(silu(x)) + shift)), with scale and shift from the latent."""

    def __init__(self, width: int, style_dim: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(style_dim, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        # Residual branches start small, so deep networks need no normalisation (arXiv:1901.09321).
        self.second.init_scale = 0.1  # type: ignore[assignment]
        self.modulation.init_scale = 0.5  # type: ignore[assignment]

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Refine features [b, w, h, h] under style [b, s]."""
        scale, shift = self.modulation(style)[:, :, None, None].chunk(2, dim=1)
        y = torch.addcmul(shift, self.first(F.silu(x)), 1 + scale)
        return x + self.second(F.silu(y))
