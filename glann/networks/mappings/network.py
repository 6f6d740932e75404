"""The mapping T: noise float [b, e] to latents float [b, d]."""

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glann.networks.mappings.mlp import mlp
from glann.networks.mappings.residual import residual_mlp
from glann.networks.mappings.settings import Mapping
from glann.runtime.settings import MOST_DIMENSIONS, Section
from glann.runtime.tensors import load_network, save_tensors

NETWORKS = {"mlp": mlp, "residual": residual_mlp}
ROWS_AT_ONCE = 1024  # compared with all anchors


class MappingArchitecture(Section):
    """Everything needed to build a mapping before its weights are loaded."""

    config: Mapping
    noise_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    latent_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    anchors: int = Field(0, ge=0)
    """rows of the buffers `anchors` and `residuals`"""


class MappingNetwork(nn.Module):
    """A network whose output is moved to where the latents are.

    If all latents have the same norm, they lie on a sphere around 0, and outputs are projected onto it.
    Other latents are reached by a shift and a scale, so that the network itself always works with numbers
    of about 1: in *unit* coordinates. `glann.imle.calibration` measures these buffers.

    Attributes
    ----------
    network
        One of `NETWORKS`; its weights are drawn by `initialize`.
    shift, scale, on_sphere
        float32 [d], float32 [] and bool []: latents are ``unit * scale + shift``; on the sphere, `unit` has
        length 1.
    matrix, offset
        float32 [d, d] and [d]: an affine correction of the network's outputs.
    anchors, residuals
        float32 [a, d]: at each anchor, a difference that is added to outputs near it. Absent by default.
    """

    shift: Tensor
    scale: Tensor
    on_sphere: Tensor
    matrix: Tensor
    offset: Tensor
    anchors: Tensor
    residuals: Tensor

    def __init__(self, architecture: MappingArchitecture):
        super().__init__()
        self.architecture = a = architecture
        self.network = NETWORKS[a.config.kind](a.noise_dim, a.latent_dim, a.config.width, a.config.depth)
        self.register_buffer("shift", torch.zeros(a.latent_dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("on_sphere", torch.zeros((), dtype=torch.bool))
        # On the meta device, torch.eye would import torch's compiler, which takes two seconds.
        self.register_buffer("matrix", torch.zeros(a.latent_dim, a.latent_dim).fill_diagonal_(1))
        self.register_buffer("offset", torch.zeros(a.latent_dim))
        if a.anchors:
            self.register_buffer("anchors", torch.zeros(a.anchors, a.latent_dim))
            self.register_buffer("residuals", torch.zeros(a.anchors, a.latent_dim))

    def forward(self, noise: Tensor, truncation: float = 1.0) -> Tensor:
        """Map noise to latents.

        Parameters
        ----------
        noise
            float32 [b, e].
        truncation
            Factor on the noise. Below 1 it shortens the residuals too.

        Returns
        -------
        Tensor
            float32 [b, d].
        """
        unit = self.unit(noise * truncation)
        return self.from_unit(unit, min(truncation, 1.0) * self.nearest_residual(unit))

    def unit(self, noise: Tensor) -> Tensor:
        """Map noise [b, e] to unit coordinates [b, d], before residuals."""
        return self.corrected(self.project(self.network(noise)))

    def corrected(self, projected: Tensor) -> Tensor:
        """Apply `matrix` and `offset` to projected outputs [b, d]."""
        return self.project(projected @ self.matrix + self.offset)

    def project(self, output: Tensor) -> Tensor:
        """Turn outputs of the network [..., d] into unit coordinates: on the sphere, give them length 1."""
        output = output if output.dtype == torch.float64 else output.float()
        return torch.where(self.on_sphere, F.normalize(output, dim=-1), output)

    def nearest_residual(self, unit: Tensor) -> Tensor:
        """Return the residual of the anchor nearest to each row of `unit`: float32 [b, d] to float32 [b, d].

        A regression answers with the average of its targets. Adding the residual of a matched pair nearby
        spreads the outputs again, as in the local bootstrap (Shi, Annals of the Institute of Statistical
        Mathematics 43, 1991).
        """
        if not self.architecture.anchors:
            return torch.zeros_like(unit)
        nearest = [torch.cdist(part, self.anchors).argmin(dim=1) for part in unit.split(ROWS_AT_ONCE)]
        return self.residuals[torch.cat(nearest)]

    def from_unit(self, unit: Tensor, residual: Tensor) -> Tensor:
        """Add residuals to unit coordinates, both [..., d], and turn them into latents."""
        return self.project(unit + residual) * self.scale + self.shift

    def to_unit(self, latents: Tensor) -> Tensor:
        """Turn latents [n, d] into unit coordinates."""
        return (latents - self.shift) / self.scale

    def set_residuals(self, anchors: Tensor, residuals: Tensor) -> None:
        """Use these anchors and residuals, both float32 [a, d]."""
        self.architecture = self.architecture.model_copy(update={"anchors": len(anchors)})
        self.register_buffer("anchors", anchors)
        self.register_buffer("residuals", residuals)

    def save(self, path: str | Path) -> None:
        """Write weights and architecture as one safetensors file."""
        save_tensors(path, self.state_dict(), self.architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "MappingNetwork":
        """Read a file written by `save`; the network is in evaluation mode."""
        return load_network(path, lambda config: cls(MappingArchitecture.model_validate(config))).eval()
