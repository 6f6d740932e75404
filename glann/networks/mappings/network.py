"""The mapping T: noise float [b, e] to latents float [b, d]."""

from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from glann.networks.mappings.mlp import mlp
from glann.networks.mappings.residual import residual_mlp
from glann.networks.mappings.settings import Mapping
from glann.runtime.settings import LARGEST, MOST_CLASSES, MOST_DIMENSIONS, Section
from glann.runtime.tensors import load_network, save_tensors

NETWORKS = {"mlp": mlp, "residual": residual_mlp}
ROWS_AT_ONCE = 1024  # compared with all anchors
LONGEST = 1000  # letters of the name of a class


class MappingArchitecture(Section):
    """Everything needed to build a mapping before its weights are loaded."""

    config: Mapping | None
    """None: noise is a latent already, once it is projected to the sphere"""
    noise_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    latent_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    classes: list[Annotated[str, Field(min_length=1, max_length=LONGEST)]] = Field(
        [], max_length=MOST_CLASSES
    )
    """names of the classes of a conditional mapping"""
    class_counts: list[Annotated[int, Field(ge=1, le=LARGEST)]] = Field([])
    """how many latents each class had"""
    anchors: int = Field(0, ge=0)
    """rows of the buffers `anchors` and `residuals`"""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.config is None and (self.noise_dim != self.latent_dim or self.classes or self.anchors):
            raise ValueError("config: without a network, noise and latents are of one size, without classes")
        return self

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if len(self.class_counts) != len(self.classes):
            raise ValueError("class_counts: needs a number per class")
        if len({*self.classes}) != len(self.classes) or not all(map(str.isprintable, self.classes)):
            raise ValueError("classes: needs printable names, none of them twice")
        return self


class MappingNetwork(nn.Module):
    """A network whose output is moved to where the latents are.

    If all latents have the same norm, they lie on a sphere around 0, and outputs are projected onto it.
    Other latents are reached by a shift and a scale, so that the network itself always works with numbers
    of about 1: in *unit* coordinates. `glann.imle.calibration` measures these buffers.

    A conditional mapping also reads the class of what it is to draw. Then matrix and offset have a row per
    class, and only anchors of this class count.

    Attributes
    ----------
    network
        One of `NETWORKS`, whose weights are drawn by `initialize`, or nothing, if there is no `config`.
    shift, scale, on_sphere
        float32 [d], float32 [] and bool []: latents are ``unit * scale + shift``; on the sphere, `unit` has
        length 1.
    matrix, offset
        float32 [d, d] and [d], or [k, d, d] and [k, d]: an affine correction of the network's outputs.
    anchors, residuals
        float32 [a, d]: at each anchor, a difference that is added to outputs near it. Absent by default.
    anchor_labels
        int64 [a]: the class of each anchor, if there are classes.
    """

    shift: Tensor
    scale: Tensor
    on_sphere: Tensor
    matrix: Tensor
    offset: Tensor
    anchors: Tensor
    residuals: Tensor
    anchor_labels: Tensor

    def __init__(self, architecture: MappingArchitecture):
        super().__init__()
        self.architecture = a = architecture
        per_class = (len(a.classes),) if a.classes else ()
        read = a.noise_dim + len(a.classes)
        self.network: nn.Module = nn.Identity()
        if a.config:
            self.network = NETWORKS[a.config.kind](read, a.latent_dim, a.config.width, a.config.depth)
        self.register_buffer("shift", torch.zeros(a.latent_dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("on_sphere", torch.full((), a.config is None))
        # On the meta device, torch.eye would import torch's compiler, which takes two seconds.
        matrix = torch.zeros(*per_class, a.latent_dim, a.latent_dim)
        matrix.diagonal(dim1=-2, dim2=-1).fill_(1)
        self.register_buffer("matrix", matrix)
        self.register_buffer("offset", torch.zeros(*per_class, a.latent_dim))
        if a.anchors:
            self.register_buffer("anchors", torch.zeros(a.anchors, a.latent_dim))
            self.register_buffer("residuals", torch.zeros(a.anchors, a.latent_dim))
            if a.classes:
                self.register_buffer("anchor_labels", torch.zeros(a.anchors, dtype=torch.int64))

    def forward(self, noise: Tensor, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Map noise to latents.

        Parameters
        ----------
        noise
            float32 [b, e].
        labels
            int64 [b]: the class of each row, which a conditional mapping needs.
        truncation
            Factor on the noise. Below 1 it shortens the residuals too.

        Returns
        -------
        Tensor
            float32 [b, d].
        """
        unit = self.unit(noise * truncation, labels)
        return self.from_unit(unit, min(truncation, 1.0) * self.nearest_residual(unit, labels))

    def unit(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Map noise [b, e] of classes int64 [b] to unit coordinates [b, d], before residuals."""
        return self.corrected(self.project(self.network(self.read(noise, labels))), labels)

    def read(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        """Return what the network reads: noise [b, e], followed by the class as a one-hot vector [b, k]."""
        if labels is None:
            return noise
        classes = F.one_hot(labels, len(self.architecture.classes))
        return torch.cat([noise, classes.to(noise)], dim=1)

    def corrected(self, projected: Tensor, labels: Tensor | None = None) -> Tensor:
        """Apply `matrix` and `offset` to projected outputs [b, d] of classes int64 [b]."""
        if labels is None:
            return self.project(projected @ self.matrix + self.offset)
        turned = torch.einsum("bd,bde->be", projected, self.matrix[labels])
        return self.project(turned + self.offset[labels])

    def project(self, output: Tensor) -> Tensor:
        """Turn outputs of the network [..., d] into unit coordinates: on the sphere, give them length 1."""
        output = output if output.dtype == torch.float64 else output.float()
        return torch.where(self.on_sphere, F.normalize(output, dim=-1), output)

    def nearest_residual(self, unit: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the residual of the anchor nearest to each row of `unit`: float32 [b, d] to float32 [b, d].

        If there are classes, int64 [b], it is the nearest anchor of the same class, if that has any.

        A regression answers with the average of its targets. Adding the residual of a matched pair nearby
        spreads the outputs again, as in the local bootstrap (Shi, Annals of the Institute of Statistical
        Mathematics 43, 1991).
        """
        if not self.architecture.anchors:
            return torch.zeros_like(unit)
        found = []
        for rows in torch.arange(len(unit), device=unit.device).split(ROWS_AT_ONCE):
            apart = torch.cdist(unit[rows], self.anchors)
            if labels is not None:
                apart[labels[rows, None] != self.anchor_labels] = torch.inf
            distance, nearest = apart.min(dim=1)
            found.append(torch.where(distance.isinf()[:, None], 0, self.residuals[nearest]))
        return torch.cat(found)

    def from_unit(self, unit: Tensor, residual: Tensor) -> Tensor:
        """Add residuals to unit coordinates, both [..., d], and turn them into latents."""
        return self.project(unit + residual) * self.scale + self.shift

    def to_unit(self, latents: Tensor) -> Tensor:
        """Turn latents [n, d] into unit coordinates."""
        return (latents - self.shift) / self.scale

    def set_residuals(self, anchors: Tensor, residuals: Tensor, labels: Tensor | None = None) -> None:
        """Use these anchors and residuals, both float32 [a, d], of classes int64 [a]."""
        self.architecture = self.architecture.model_copy(update={"anchors": len(anchors)})
        self.register_buffer("anchors", anchors)
        self.register_buffer("residuals", residuals)
        if labels is not None:
            self.register_buffer("anchor_labels", labels)

    def save(self, path: str | Path) -> None:
        """Write weights and architecture as one safetensors file."""
        save_tensors(path, self.state_dict(), self.architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "MappingNetwork":
        """Read a file written by `save`; the network is in evaluation mode."""
        return load_network(path, lambda config: cls(MappingArchitecture.model_validate(config))).eval()
