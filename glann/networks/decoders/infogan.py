"""The GLANN paper's decoder for 28 and 32 px."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glann.networks.decoders.settings import Decoder
from glann.networks.layers import START_GREY, BatchNorm


class InfoGanDecoder(nn.Module):
    """The GLANN paper's decoder, after InfoGAN (arXiv:1606.03657): two dense layers, two upsampling ones."""

    def __init__(self, latent_dim: int, size: int, channels: int, config: Decoder):
        super().__init__()
        width, batch_norm = config.width, config.batch_norm
        self.shape = (2 * width, size // 4, size // 4)
        flat = math.prod(self.shape)
        self.dense = nn.Linear(latent_dim, 16 * width, bias=False)
        self.to_grid = nn.Linear(16 * width, flat, bias=False)
        self.grid_norm = BatchNorm(flat) if batch_norm else nn.Identity()
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.up_norm = BatchNorm(width) if batch_norm else nn.Identity()
        self.to_image = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)
        self.to_image.init_scale = START_GREY  # type: ignore[assignment]

    def forward(self, latents: Tensor) -> Tensor:
        """Decode float [b, d] to float [b, c, size, size]."""
        # Coordinates of a unit vector are about 1 / sqrt(d); layers expect inputs of about 1.
        x = F.leaky_relu(self.dense(latents * math.sqrt(latents.shape[1])), 0.2)
        x = F.leaky_relu(self.grid_norm(self.to_grid(x)), 0.2)
        x = x.view(-1, *self.shape)  # => [b, 2w, size/4, size/4]
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.up_norm(self.up(x)), 0.2)
        return self.to_image(x).sigmoid()
