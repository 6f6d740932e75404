"""Small latents, settings and networks, with which everything takes a second."""

import math

import torch

from glann.imle.settings import Imle
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder, Origin
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.sample.generator import Generator
from glann.training.checkpoints import Checkpoints

SMALL = Imle(noise_dim=2, mapping={"width": 64, "depth": 2}, epochs=40, lr=0.003)


class Killed(Exception):  # noqa: N818
    """What ends a run of `KilledOnce`."""


class KilledOnce(Checkpoints):
    """Ends a run after the second step of its second epoch has been saved."""

    def save(self, tensors: dict[str, torch.Tensor], position: dict) -> None:
        super().save(tensors, position)
        if len(position["history"]) == 1 and position["step"] == 2:
            raise Killed


def clusters(n: int = 600) -> torch.Tensor:
    """Five tight groups on the unit circle, float32 [n, 2]."""
    angles = torch.arange(n) % 5 * (2 * math.pi / 5) + 0.05 * torch.randn(n, generator=stream(0, "angles"))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def small_generator(
    on: Execution, channels: int = 3, classes: dict[str, int] | None = None, **origin: object
) -> Generator:
    """A generator of 16 px with random weights: noise of 4 numbers, latents of 8 on the sphere."""
    mapping = MappingNetwork(
        MappingArchitecture(
            config=Mapping(width=16, depth=1),
            noise_dim=4,
            latent_dim=8,
            classes=[*(classes or {})],
            class_counts=[*(classes or {}).values()],
        )
    )
    architecture = DecoderArchitecture(
        config=Decoder(width=8), latent_dim=8, size=16, channels=channels, origin=Origin(**origin)
    )
    decoder = DecoderNetwork(architecture)
    initialize(mapping, stream(0, "mapping"))
    if classes:
        draws = stream(0, "corrections")
        mapping.matrix.add_(0.3 * torch.randn(mapping.matrix.shape, generator=draws))
        mapping.offset.add_(torch.randn(mapping.offset.shape, generator=draws))
    initialize(decoder, stream(0, "decoder"))
    return Generator(mapping, decoder, on)
