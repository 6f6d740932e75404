"""DCGAN's generator as a decoder for 64 px and up."""

import math

import torch
from torch import Tensor, nn

from glann.networks.decoders.settings import Decoder
from glann.networks.layers import START_GREY, BatchNorm


class DcganDecoder(nn.Module):
    """DCGAN's generator (arXiv:1511.06434): transposed convolutions, starting at 4 px."""

    def __init__(self, latent_dim: int, size: int, channels: int, config: Decoder):
        super().__init__()
        width, batch_norm = config.width, config.batch_norm
        doublings = int(math.log2(size)) - 3  # from 4 px to size / 2
        widths = [min(width << k, 8 * width) for k in range(doublings, -1, -1)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, widths[0], 4, bias=False)]
        for i, w in enumerate(widths):
            layers += [BatchNorm(w)] if batch_norm else []
            following = widths[i + 1] if i + 1 < len(widths) else channels
            layers += [nn.ReLU(), nn.ConvTranspose2d(w, following, 4, stride=2, padding=1, bias=False)]
        layers[-1].init_scale = START_GREY  # type: ignore[assignment]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode float [b, d] to float [b, c, size, size]."""
        x = latents[:, :, None, None] * math.sqrt(latents.shape[1])
        return self.layers(x.contiguous(memory_format=torch.channels_last)).sigmoid()
