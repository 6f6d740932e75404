"""Decoders: latents float [b, d] on the unit sphere to images float [b, c, h, w] in [0, 1]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from glann.networks.decoders.dcgan import DcganDecoder
from glann.networks.decoders.infogan import InfoGanDecoder
from glann.networks.decoders.modulated import ModulatedDecoder
from glann.networks.decoders.settings import SIZES_MADE, Decoder, Origin
from glann.networks.decoders.smooth import SmoothDecoder
from glann.runtime.settings import MOST_DIMENSIONS, Section
from glann.runtime.tensors import load_network, save_tensors

NETWORKS = {
    "infogan": InfoGanDecoder,
    "dcgan": DcganDecoder,
    "residual": ModulatedDecoder,
    "smooth": SmoothDecoder,
}


class DecoderArchitecture(Section):
    """Everything needed to build a decoder before its weights are loaded."""

    config: Decoder
    latent_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    size: int
    channels: Literal[1, 3]
    latents: str = Field("", pattern="^([0-9a-f]{64})?$")
    """SHA-256 of the latents.npy that was trained with it"""
    origin: Origin = Origin()
    """how it was trained, for pictures that are projected later"""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.size not in SIZES_MADE[self.config.kind]:
            raise ValueError(f"size: {self.config.kind} cannot make {self.size} px")
        return self


class DecoderNetwork(nn.Module):
    """One of `NETWORKS` with its architecture. Its initial weights are drawn by `initialize`."""

    def __init__(self, architecture: DecoderArchitecture):
        super().__init__()
        self.architecture = a = architecture
        self.network: nn.Module = NETWORKS[a.config.kind](a.latent_dim, a.size, a.channels, a.config)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode float [b, d] to float [b, c, size, size]."""
        return self.network(latents)

    def save(self, path: str | Path, latents: str = "", prepared: Mapping[str, Any] | None = None) -> None:
        """Write weights and architecture as one safetensors file.

        Parameters
        ----------
        path
            The file.
        latents
            SHA-256 of the latents.npy that belongs to this decoder, if there is one.
        prepared
            How its images were prepared: "fit" and "background". None: as the architecture says.
        """
        origin = self.architecture.origin.model_copy(update=dict(prepared or {}))
        update = {"latents": latents or self.architecture.latents, "origin": origin}
        architecture = self.architecture.model_copy(update=update)
        save_tensors(path, self.state_dict(), architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "DecoderNetwork":
        """Read a file written by `save`; the network is in evaluation mode."""
        return load_network(path, lambda config: cls(DecoderArchitecture.model_validate(config))).eval()
