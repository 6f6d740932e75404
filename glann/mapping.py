"""Mapping networks T: noise float [b, e] to latents float [b, d]."""

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glann.batch_norm import BatchNorm
from glann.config import MOST_DIMENSIONS, Mapping, Section
from glann.progress import progress
from glann.stopping import unless_stopped
from glann.storage import load_network, save_tensors

MOMENT_ROUNDS = 8
ROWS_IN_FLOAT64 = 4096  # at once, also where only differences are taken
NEIGHBOURS = 3  # pairs near an anchor, of which one lends it its residual
ROWS_AT_ONCE = 1024  # compared with all anchors


class MappingArchitecture(Section):
    """What a file says of a mapping, so that it can be built again."""

    config: Mapping
    noise_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    latent_dim: int = Field(ge=1, le=MOST_DIMENSIONS)
    anchors: int = Field(0, ge=0)
    """rows of `anchors` and `residuals`"""


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
    anchors: Tensor
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
        if a.anchors:
            self.register_buffer("anchors", torch.zeros(a.anchors, a.latent_dim))
            self.register_buffer("residuals", torch.zeros(a.anchors, a.latent_dim))

    def fit_range(self, latents: Tensor) -> None:
        """Learn shift, scale and whether there is a sphere about 0 from latents float32 [n, d].

        On a sphere rows differ in direction alone. In a small cloud far from 0 lengths are much the same too,
        but for as much as the rows differ at all.
        """
        norms = latents.norm(dim=1)
        radius = norms.mean()
        mean = latents.mean(dim=0)
        squares = sum(float((rows - mean).square().sum()) for rows in latents.split(ROWS_IN_FLOAT64))
        apart = (squares / len(latents)) ** 0.5
        on_sphere = bool(radius > 0) and bool((norms - radius).abs().max() <= 1e-3 * apart)
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
        """Bring the network's output [..., d] to where latents are before shift and scale."""
        output = output if output.dtype == torch.float64 else output.float()
        return torch.where(self.on_sphere, F.normalize(output, dim=-1), output)

    def unit(self, noise: Tensor) -> Tensor:
        """Map noise [b, e] to latents before shift and scale [b, d]."""
        return self.corrected(self.project(self.network(noise)))

    def corrected(self, projected: Tensor) -> Tensor:
        """Apply the correction that `correct_moments` found to projected outputs [b, d]."""
        return self.project(projected @ self.matrix + self.offset)

    def correct_moments(self, projected: Tensor, mean: Tensor, covariance: Tensor) -> None:
        """Find the affine map that gives projected outputs [m, d] a mean [d] and covariance [d, d].

        It is the optimal transport between the two Gaussians (Peyré & Cuturi, arXiv:1803.00567, eq. 2.41). On
        the sphere it is found again, a few times, for what projecting its result leaves over.

        Raises
        ------
        Stopped
            If a signal asked for it.
        """
        matrix = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        offset = torch.zeros_like(mean)
        rounds = MOMENT_ROUNDS if self.on_sphere else 1
        with progress("imle, moments", rounds * len(projected), "samples") as advance:
            for _ in range(rounds):
                blocks = unless_stopped(projected.split(ROWS_IN_FLOAT64), advance)
                reached, spread = moments(self.project(rows.double() @ matrix + offset) for rows in blocks)
                root, inverse = _powers(spread, 0.5, -0.5)
                (middle,) = _powers(root @ covariance @ root, 0.5)
                transport = inverse @ middle @ inverse
                matrix, offset = matrix @ transport, (offset - reached) @ transport + mean
        self.matrix.copy_(matrix)
        self.offset.copy_(offset)

    def keep_residuals(
        self, candidates: Tensor, latents: Tensor, share: float, draws: torch.Generator
    ) -> None:
        """Keep what the mapping leaves of latents, for `residual`.

        Every candidate becomes an anchor with the residual of one of the pairs nearest to it, never one of
        its own: no sample is led to a latent that its own region was fitted to.

        Parameters
        ----------
        candidates
            float32 [m, d] of `unit`; rows are equal where latents share one. If all are equal, none can lend
            another a residual, and none is kept.
        latents
            float32 [m, d], before shift and scale: each the one that its candidate was matched with.
        share
            Factor on their difference.
        draws
            Decides which of the nearest pairs.
        """
        anchors, anchor_of = candidates.unique(dim=0, return_inverse=True)
        if len(anchors) == 1:
            return
        self.architecture = self.architecture.model_copy(update={"anchors": len(anchors)})
        k = min(NEIGHBOURS, len(candidates) - int(anchor_of.bincount().max()))
        lenders = []
        for rows in torch.arange(len(anchors), device=anchors.device).split(ROWS_AT_ONCE):
            apart = torch.cdist(anchors[rows], candidates)
            apart[rows[:, None] == anchor_of] = torch.inf
            lenders.append(apart.topk(k, largest=False).indices)
        choice = torch.randint(k, (len(anchors), 1), generator=draws).to(anchors.device)
        lender = torch.cat(lenders).gather(1, choice)[:, 0]
        self.register_buffer("anchors", anchors)
        self.register_buffer("residuals", share * (latents - candidates)[lender])

    def residual(self, unit: Tensor) -> Tensor:
        """Return the residual of each output's nearest anchor: `unit`, float32 [b, d], to float32 [b, d].

        A regression answers with the middle of what it was asked for. Residuals of matched pairs nearby
        spread its outputs again, in the manner of the local bootstrap (Shi, Annals of the Institute of
        Statistical Mathematics 43, 1991).
        """
        if not self.architecture.anchors:
            return torch.zeros_like(unit)
        nearest = [torch.cdist(part, self.anchors).argmin(dim=1) for part in unit.split(ROWS_AT_ONCE)]
        return self.residuals[torch.cat(nearest)]

    def from_unit(self, unit: Tensor, residual: Tensor) -> Tensor:
        """Bring outputs of `unit` and `residual` [b, d] to where the latents are."""
        return self.project(unit + residual) * self.scale + self.shift

    def forward(self, noise: Tensor) -> Tensor:
        """Map noise [b, e] to latents [b, d]."""
        unit = self.unit(noise)
        return self.from_unit(unit, self.residual(unit))

    def save(self, path: str | Path) -> None:
        """Write weights and architecture as one safetensors file."""
        save_tensors(path, self.state_dict(), self.architecture.model_dump())

    @classmethod
    def load(cls, path: str | Path) -> "MappingNetwork":
        """Read what `save` wrote, in evaluation mode."""
        return load_network(path, lambda config: cls(MappingArchitecture.model_validate(config))).eval()


def moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean [d] and covariance [d, d], in float64, of rows that come in blocks [b, d]."""
    count = 0
    center = total = products = torch.zeros(())
    for block in blocks:
        rows = block.double()
        if not count:  # sums of squares about a point nearby lose no digits
            center = rows.mean(dim=0)
            total, products = torch.zeros_like(center), center.new_zeros(len(center), len(center))
        rows = rows - center
        total += rows.sum(dim=0)
        products.addmm_(rows.T, rows)
        count += len(rows)
    rest = total / count
    return center + rest, products / count - torch.outer(rest, rest)


def _powers(matrix: Tensor, *exponents: float) -> list[Tensor]:
    """Return powers of a symmetric matrix; directions without spread count as those of the least spread."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(max(1e-6 * values[-1].item(), 1e-12))
    return [vectors * values**exponent @ vectors.T for exponent in exponents]


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
