"""Decoders: latents float [b, d] on the unit sphere to images float [b, c, h, w] in [0, 1]."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from glann.networks.decoders.dcgan import DcganDecoder
from glann.networks.decoders.infogan import InfoGanDecoder
from glann.networks.decoders.modulated import ModulatedDecoder
from glann.networks.decoders.settings import SIZES_MADE, Decoder
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

    def save(self, path: str | Path, latents: str = "") -> None:
        """Write weights and architecture as one safetensors file.

        Parameters
        ----------
        path
            The file.
        latents
            SHA-256 of the latents.npy that belongs to this decoder, if there is one.
        """
        architecture = self.architecture.model_copy(update={"latents": latents or self.architecture.latents})
        save_tensors(path, self.state_dict(), architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "DecoderNetwork":
        """Read a file written by `save`; the network is in evaluation mode."""
        return load_network(path, lambda config: cls(DecoderArchitecture.model_validate(config))).eval()
