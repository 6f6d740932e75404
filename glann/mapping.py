"""Mapping networks T: noise float [b, e] to latents float [b, d]."""

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glann.batch_norm import BatchNorm
from glann.config import MOST_DIMENSIONS, Mapping, Section
from glann.storage import load_network, save_tensors

MOMENT_ROUNDS = 8
NEIGHBOURS = 3  # pairs near a sample, of which one lends its residual


class MappingArchitecture(Section):
    """What a file says of a mapping, so that it can be built again."""

    config: Mapping
    noise_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    latent_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    residuals: int = Field(0, ge=0)
    """rows of `places` and `residuals`"""


class MappingNetwork(nn.Module):
    """A network whose output is brought to where the latents are.

    Latents that all have one norm lie on a sphere about 0, and outputs are projected onto it. Others are
    reached by a shift and a scale, so that the network itself always works on numbers of size 1.

    Untrained, its weights are drawn by `decoders.initialize`.
    """

    shift: Tensor
    scale: Tensor
    on_sphere: Tensor
    matrix: Tensor
    offset: Tensor
    places: Tensor
    residuals: Tensor

    def __init__(self, architecture: MappingArchitecture):
        super().__init__()
        self.architecture = a = architecture
        make = {"mlp": _mlp, "residual": _residual}[a.config.kind]
        self.network = make(a.noise_dim, a.latent_dim, a.config.width, a.config.depth)
        self.register_buffer("shift", torch.zeros(a.latent_dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("on_sphere", torch.zeros((), dtype=torch.bool))
        # torch.eye would import torch's compiler on the meta device, two seconds.
        self.register_buffer("matrix", torch.zeros(a.latent_dim, a.latent_dim).fill_diagonal_(1))
        self.register_buffer("offset", torch.zeros(a.latent_dim))
        if a.residuals:
            self.register_buffer("places", torch.zeros(a.residuals, a.latent_dim))
            self.register_buffer("residuals", torch.zeros(a.residuals, a.latent_dim))

    def fit_range(self, latents: Tensor) -> None:
        """Learn shift, scale and whether there is a sphere from latents float32 [n, d]."""
        norms = latents.norm(dim=1)
        radius = norms.mean()
        on_sphere = bool(radius > 0) and bool((norms - radius).abs().max() < 1e-3 * radius)
        self.on_sphere.fill_(on_sphere)
        if on_sphere:
            self.shift.zero_()
            self.scale.fill_(radius)
        else:
            self.shift.copy_(latents.mean(dim=0))
            spread = (latents - self.shift).square().mean().sqrt()
            self.scale.fill_(spread if spread > 0 else 1.0)

    def to_unit(self, latents: Tensor) -> Tensor:
        """Bring latents [n, d] to where `network` works: the unit sphere, or mean 0 and spread 1."""
        return (latents - self.shift) / self.scale

    def project(self, output: Tensor) -> Tensor:
        """Bring the network's output [b, d] to where latents are before shift and scale."""
        output = output if output.dtype == torch.float64 else output.float()
        return torch.where(self.on_sphere, F.normalize(output, dim=1), output)

    def unit(self, noise: Tensor) -> Tensor:
        """Map noise [b, e] to latents before shift and scale [b, d]."""
        return self.corrected(self.project(self.network(noise)))

    def corrected(self, projected: Tensor) -> Tensor:
        """Apply the correction that `correct_moments` found to projected outputs [b, d]."""
        return self.project(projected @ self.matrix + self.offset)

    def correct_moments(self, projected: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Find the affine map that gives projected outputs [m, d] a mean [d] and covariance [d, d].

        It is the optimal transport between the two Gaussians (Peyré & Cuturi, arXiv:1803.00567, eq. 2.41),
        found again, a few times, for what projecting its result onto the sphere leaves over.
        """
        matrix = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        offset = torch.zeros_like(mean)
        for _ in range(MOMENT_ROUNDS):
            reached, spread = moments(self.project(projected.double() @ matrix + offset))
            root, inverse = _power(spread, 0.5), _power(spread, -0.5)
            transport = inverse @ _power(root @ covariance @ root, 0.5) @ inverse
            matrix, offset = matrix @ transport, (offset - reached) @ transport + mean
        self.matrix.copy_(matrix)
        self.offset.copy_(offset)

    def keep_residuals(self, candidates: Tensor, latents: Tensor, strength: float) -> None:
        """Keep what the mapping leaves of latents, for `residual`.

        Parameters
        ----------
        candidates
            float32 [m, d], of `unit`.
        latents
            float32 [m, d], before shift and scale: each the one that its candidate was matched with.
        strength
            Factor on their difference.
        """
        self.architecture = self.architecture.model_copy(update={"residuals": len(latents)})
        self.register_buffer("places", candidates)
        self.register_buffer("residuals", strength * (latents - candidates))

    def residual(self, noise: Tensor, unit: Tensor) -> Tensor:
        """Return what is added to outputs [b, d] of `unit` for noise [b, e], float32 [b, d].

        A regression answers with the middle of what it was asked for, so its outputs vary less than latents
        do. The residual of a matched pair nearby gives back what is missing there: a local bootstrap
        (Shi, "Local bootstrap", Annals of the Institute of Statistical Mathematics 43, 1991).
        """
        if not self.architecture.residuals:
            return torch.zeros_like(unit)
        k = min(NEIGHBOURS, self.architecture.residuals)
        near = torch.cdist(unit, self.places).topk(k, largest=False).indices  # [b, k]
        # Which of them is decided by digits of the noise that hardly move the network's output.
        choice = ((noise[:, :1].double() * 1e4).frac().abs() * k).long()
        return self.residuals[near.gather(1, choice)[:, 0]]

    def place(self, unit: Tensor, residual: Tensor) -> Tensor:
        """Bring outputs of `unit` and `residual` [b, d] to where the latents are."""
        return self.project(unit + residual) * self.scale + self.shift

    def forward(self, noise: Tensor) -> Tensor:
        """Map noise [b, e] to latents [b, d]."""
        unit = self.unit(noise)
        return self.place(unit, self.residual(noise, unit))

    def save(self, path: str | Path) -> None:
        """Write weights and architecture as one safetensors file."""
        save_tensors(path, self.state_dict(), self.architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "MappingNetwork":
        """Read what `save` wrote, in evaluation mode."""
        return load_network(path, lambda config: cls(MappingArchitecture.model_validate(config))).eval()


def moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [d] and covariance [d, d] of rows [m, d], in float64."""
    rows = rows.double()
    mean = rows.mean(dim=0)
    return mean, (rows - mean).T @ (rows - mean) / len(rows)


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Return a power of a symmetric matrix; directions without spread count as those of the least spread."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(max(1e-6 * values[-1].item(), 1e-12)) ** exponent @ vectors.T


def _mlp(noise_dim: int, latent_dim: int, width: int, depth: int) -> nn.Sequential:
    """Hidden layers with batch normalisation, no biases: the GLANN paper's (two of 128)."""
    layers: list[nn.Module] = []
    for before in [noise_dim] + [width] * (depth - 1):
        layers += [nn.Linear(before, width, bias=False), BatchNorm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, latent_dim, bias=False))


def _residual(noise_dim: int, latent_dim: int, width: int, depth: int) -> nn.Sequential:
    """Pre-norm residual blocks: x + linear(gelu(linear(norm(x))))."""
    blocks = [_ResidualBlock(width) for _ in range(depth)]
    return nn.Sequential(
        nn.Linear(noise_dim, width), *blocks, nn.LayerNorm(width), nn.Linear(width, latent_dim)
    )


class _ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
