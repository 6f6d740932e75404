"""A decoder of modulated residual blocks with smooth upsampling and learned maps of detail."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glann.networks.decoders.modulated import ModulatedBlock
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import START_GREY, DetailMap


class SmoothDecoder(nn.Module):
    """Residual blocks from 4 px (7 px for 28) to the full size, modulated by the latent.

    Features are enlarged bilinearly, so that neighbouring pixels agree, and parts of a face fit together. For
    details, which smooth features lack, a learned map is added at each size; it is the same for all images,
    and each block weakens, amplifies or bends it as its latent says.
    """

    def __init__(self, latent_dim: int, size: int, channels: int, config: Decoder):
        super().__init__()
        self.start = 7 if size % 7 == 0 else 4
        sizes = [self.start << k for k in range(int(math.log2(size // self.start)) + 1)]
        # `width` counts channels at half the size, so that both kinds of modulated decoder agree there.
        widths = [min((config.width * size) // (2 * s), 8 * config.width) for s in sizes]
        self.dense = nn.Linear(latent_dim, widths[0])
        self.to_grid = nn.Linear(widths[0], widths[0] * self.start**2)
        self.blocks = nn.ModuleList(ModulatedBlock(w, widths[0]) for w in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.maps = nn.ModuleList(DetailMap(w, s) for w, s in zip(widths[1:], sizes[1:], strict=True))
        self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.to_image.init_scale = START_GREY  # type: ignore[assignment]

    def forward(self, latents: Tensor) -> Tensor:
        """Decode float [b, d] to float [b, c, size, size]."""
        style = F.silu(self.dense(latents * math.sqrt(latents.shape[1])))  # => [b, w0]
        x = self.to_grid(style).unflatten(1, (-1, self.start, self.start))
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.blocks[0](x, style)
        for narrow, detail, block in zip(self.narrow, self.maps, self.blocks[1:], strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="bilinear")
            x = block(detail(x), style)
        return self.to_image(F.silu(x)).sigmoid()
