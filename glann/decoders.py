"""Decoders: latents float [b, d] on the unit sphere to images float [b, c, h, w] in [0, 1]."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from glann.batch_norm import BatchNorm
from glann.config import MOST_DIMENSIONS, SIZES_MADE, Decoder, Section
from glann.storage import load_network, save_tensors

# The last layer starts small, so that images start grey: a sigmoid that starts saturated never learns.
START_GREY = 0.1


class DecoderArchitecture(Section):
    """What a file says of a decoder, so that it can be built again."""

    config: Decoder
    latent_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    size: int
    channels: Literal[1, 3]
    latents: str = Field("", pattern="^([0-9a-f]{64})?$")
    """SHA-256 of the latents.npy that was made with it"""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.size not in SIZES_MADE[self.config.kind]:
            raise ValueError(f"size: {self.config.kind} makes no {self.size} px")
        return self


class DecoderNetwork(nn.Module):
    """A decoder that knows its architecture; untrained, its weights are drawn by `initialize`."""

    def __init__(self, architecture: DecoderArchitecture):
        super().__init__()
        self.architecture = a = architecture
        shape = (a.latent_dim, a.size, a.channels, a.config.width)
        self.network: nn.Module
        if a.config.kind == "infogan":
            self.network = InfoGanDecoder(*shape, a.config.batch_norm)
        elif a.config.kind == "dcgan":
            self.network = DcganDecoder(*shape, a.config.batch_norm)
        else:
            self.network = ResidualDecoder(*shape)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode float [b, d] to float [b, c, size, size]."""
        return self.network(latents)

    def save(self, path: str | Path, latents: str = "") -> None:
        """Write weights and architecture as one safetensors file.

        Parameters
        ----------
        path
            The file.
        latents
            SHA-256 of the latents.npy beside it, if there is one; both are of use only together.
        """
        architecture = self.architecture.model_copy(update={"latents": latents or self.architecture.latents})
        save_tensors(path, self.state_dict(), architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "DecoderNetwork":
        """Read what `save` wrote, in evaluation mode."""
        return load_network(path, lambda config: cls(DecoderArchitecture.model_validate(config))).eval()


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights from `generator`: He et al. (arXiv:1502.01852) for layers, zero for biases.

    A layer with an attribute ``init_scale`` has its weights multiplied by it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # A transposed convolution of stride s reaches each output by 1 / s² of its taps.
            taps = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                taps = layer.weight[:, 0].numel() // math.prod(layer.stride)
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / taps), generator=generator)
            with torch.no_grad():
                layer.weight *= getattr(layer, "init_scale", 1.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class InfoGanDecoder(nn.Module):
    """The GLANN paper's decoder for 28 and 32 px, InfoGAN's (arXiv:1606.03657): two dense layers, two up."""

    def __init__(self, latent_dim: int, size: int, channels: int, width: int, batch_norm: bool):
        super().__init__()
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
        # A unit vector of d numbers has entries of size 1 / sqrt(d); layers expect entries of size 1.
        x = F.leaky_relu(self.dense(latents * math.sqrt(latents.shape[1])), 0.2)
        x = F.leaky_relu(self.grid_norm(self.to_grid(x)), 0.2)
        x = x.view(-1, *self.shape).contiguous(
            memory_format=torch.channels_last
        )  # => [b, 2w, size/4, size/4]
        x = F.leaky_relu(self.up_norm(self.up(x)), 0.2)
        return self.to_image(x).sigmoid()


class DcganDecoder(nn.Module):
    """DCGAN's generator (arXiv:1511.06434) for 64 px and up: transposed convolutions from 4 px on."""

    def __init__(self, latent_dim: int, size: int, channels: int, width: int, batch_norm: bool):
        super().__init__()
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


class ResidualDecoder(nn.Module):
    """Residual blocks from 4 px to half the size, each steered by the latent; a pixel shuffle ends it.

    The latent scales and shifts every block's features (FiLM, arXiv:1709.07871), so that it decides at all
    resolutions, not only at 4 px. The last doubling is a pixel shuffle (arXiv:1609.05158): a feature vector
    draws 2 x 2 pixels, which costs a quarter of convolutions at full resolution.
    """

    def __init__(self, latent_dim: int, size: int, channels: int, width: int):
        super().__init__()
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
        x = self.to_grid(style).view(len(style), -1, 4, 4)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.blocks[0](x, style)
        for narrow, block in zip(self.narrow, self.blocks[1:], strict=True):
            x = F.interpolate(narrow(x), scale_factor=2, mode="nearest")
            x = block(x, style)
        x = self.to_image(F.silu(x))
        return F.pixel_shuffle(x, 2).sigmoid()


class ModulatedBlock(nn.Module):
    """x + conv(silu((1 + scale) * conv(silu(x)) + shift)), scale and shift from the latent."""

    def __init__(self, width: int, style_dim: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(style_dim, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        # Residual branches start small, so that depth needs no normalisation (arXiv:1901.09321).
        self.second.init_scale = 0.1  # type: ignore[assignment]
        self.modulation.init_scale = 0.5  # type: ignore[assignment]

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Refine features [b, w, h, h] under style [b, s]."""
        scale, shift = self.modulation(style)[:, :, None, None].chunk(2, dim=1)
        y = torch.addcmul(shift, self.first(F.silu(x)), 1 + scale)
        return x + self.second(F.silu(y))
