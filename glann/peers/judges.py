"""Mirrors of the decoders: images float [b, c, h, w] in [0, 1] to numbers float [b, k].

A discriminator gives one number, an encoder a code. None has batch normalisation: each image is judged alone,
and a gradient penalty has a meaning.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glann.networks.decoders.network import DecoderArchitecture
from glann.networks.decoders.settings import Decoder
from glann.runtime.settings import MOST_DIMENSIONS, Section
from glann.runtime.tensors import load_network, save_tensors


class JudgeArchitecture(Section):
    """Everything needed to build a judge before its weights are loaded."""

    config: Decoder
    """the decoder that it mirrors"""
    resolution: int = Field(ge=16, le=1024)
    channels: Literal[1, 3]
    outputs: int = Field(ge=1, le=MOST_DIMENSIONS)
    reads: int = Field(0, ge=0, le=MOST_DIMENSIONS)
    """numbers that it reads besides the image"""


def judges_of(model: str, decoder: DecoderArchitecture) -> dict[str, JudgeArchitecture]:
    """Return the networks that a rival trains besides its decoder.

    Parameters
    ----------
    model
        The rival's name.
    decoder
        Its decoder.

    Returns
    -------
    dict
        As ``judge`` what scores or encodes images; for ``energy`` also ``statistics``, which tells pairs of
        image and noise apart.
    """
    latent_dim = decoder.latent_dim
    # mean and logarithmic variance; the code and, as its mean, the score; otherwise a score alone
    outputs = {"vae": 2 * latent_dim, "ogan": latent_dim}.get(model, 1)
    judge = JudgeArchitecture(
        config=decoder.config, resolution=decoder.size, channels=decoder.channels, outputs=outputs
    )
    more = {"statistics": judge.model_copy(update={"reads": latent_dim})} if model == "energy" else {}
    return {"judge": judge, **more}


class JudgeNetwork(nn.Module):
    """The mirror of a decoder, then a hidden layer, then the outputs. `initialize` draws its weights."""

    def __init__(self, architecture: JudgeArchitecture):
        super().__init__()
        self.architecture = a = architecture
        self.features, features = MIRRORS[a.config.kind](a.resolution, a.channels, a.config.width)
        hidden = 16 * a.config.width if a.config.kind == "infogan" else 8 * a.config.width
        self.hidden = nn.Linear(features + a.reads, hidden)
        self.out = nn.Linear(hidden, a.outputs)

    def forward(self, images: Tensor, read: Tensor | None = None) -> Tensor:
        """Judge images float [b, c, h, w] and, if it reads more, numbers: float [b, k].

        Of numbers float [m * b, r], each image is judged with every b-th row: float [m * b, k].
        """
        seen = self.features(2 * images - 1).flatten(1)
        if read is not None:
            seen = torch.cat([seen.repeat(len(read) // len(seen), 1), read.to(seen.dtype)], dim=1)
        return self.out(F.leaky_relu(self.hidden(F.leaky_relu(seen, 0.2)), 0.2))

    def save(self, path: str | Path) -> None:
        """Write weights and architecture as one safetensors file."""
        save_tensors(path, self.state_dict(), self.architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "JudgeNetwork":
        """Read a file written by `save`; the network is in evaluation mode."""
        return load_network(path, lambda config: cls(JudgeArchitecture.model_validate(config))).eval()


def _infogan(size: int, channels: int, width: int) -> tuple[nn.Module, int]:
    layers = [
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
    ]
    return nn.Sequential(*layers), 2 * width * (size // 4) ** 2


def _dcgan(size: int, channels: int, width: int) -> tuple[nn.Module, int]:
    widths = [min(width << k, 8 * width) for k in range(int(math.log2(size)) - 2)]  # from size / 2 to 4 px
    layers: list[nn.Module] = []
    for before, after in pairwise([channels, *widths]):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1]), 16 * widths[-1]


def _residual(size: int, channels: int, width: int) -> tuple[nn.Module, int]:
    widths = [min(width << k, 8 * width) for k in range(int(math.log2(size)) - 2)]  # from size / 2 to 4 px
    first = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, widths[0], 3, padding=1))
    return _falling(first, widths), 16 * widths[-1]


def _smooth(size: int, channels: int, width: int) -> tuple[nn.Module, int]:
    end = 7 if size % 7 == 0 else 4
    sizes = [size >> k for k in range(int(math.log2(size // end)) + 1)]
    widths = [min((width * size) // (2 * s), 8 * width) for s in sizes]
    return _falling(nn.Conv2d(channels, widths[0], 3, padding=1), widths), end**2 * widths[-1]


def _falling(first: nn.Module, widths: list[int]) -> nn.Sequential:
    """Return `first` and residual blocks, each but the last followed by a step to half the size."""
    layers: list[nn.Module] = [first, JudgeBlock(widths[0])]
    for before, after in pairwise(widths):
        layers += [nn.AvgPool2d(2), nn.Conv2d(before, after, 1), JudgeBlock(after)]
    return nn.Sequential(*layers)


class JudgeBlock(nn.Module):
    """x + conv(leaky(conv(leaky(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.second.init_scale = 0.1  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Refine features [b, w, h, h]."""
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))


MIRRORS = {"infogan": _infogan, "dcgan": _dcgan, "residual": _residual, "smooth": _smooth}
