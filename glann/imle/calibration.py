"""Properties of a mapping that are measured, not learned: its range before training, the rest after it."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from glann.imle.matching import CANDIDATES_AT_ONCE, MAPPED_AT_ONCE, NoiseDraws, map_candidates
from glann.imle.settings import Imle
from glann.neighbors.search import nearest_in_blocks
from glann.networks.mappings.network import ROWS_AT_ONCE, MappingNetwork
from glann.runtime.compute import Execution
from glann.runtime.processes import rank, ranks
from glann.runtime.progress import progress
from glann.runtime.randomness import stream
from glann.runtime.signals import unless_stopped
from glann.training.shards import Shard

ROWS_IN_FLOAT64 = 4096  # held as float64 at once
MOMENT_ROUNDS = 8
RESIDUALS = 10_000  # matched pairs whose residuals are kept, at most
NEIGHBOURS = 3  # pairs near an anchor, one of which lends it its residual


def fit_range(mapping: MappingNetwork, latents: Tensor) -> None:
    """Set shift, scale and on_sphere from latents float32 [n, d].

    On a sphere, latents differ in direction only. In a small cloud far from 0, norms are nearly equal too,
    but only because the latents hardly differ at all.
    """
    norms = latents.norm(dim=1)
    radius = norms.mean()
    mean = latents.mean(dim=0)
    squares = sum(float((rows - mean).square().sum()) for rows in latents.split(ROWS_IN_FLOAT64))
    apart = (squares / len(latents)) ** 0.5
    on_sphere = bool(radius > 0) and bool((norms - radius).abs().max() <= 1e-3 * apart)
    mapping.on_sphere.fill_(on_sphere)
    if on_sphere:
        mapping.shift.zero_()
        mapping.scale.fill_(radius)
    else:
        mapping.shift.copy_(mean)
        spread = (latents - mapping.shift).square().mean().sqrt()
        mapping.scale.fill_(spread if spread > 0 else 1.0)


def calibrate(
    mapping: MappingNetwork, latents: Tensor, config: Imle, count: int, seed: int, execution: Execution
) -> None:
    """Measure batch-norm statistics, moments and residuals of the trained mapping.

    Parameters
    ----------
    mapping
        The moving average after training.
    latents
        float [n, d]; all of them.
    config
        The `imle` section of params.yaml.
    count
        Candidates of an epoch.
    seed
        Seed of the noise.
    execution
        Device and precision.
    """
    fresh = NoiseDraws(CANDIDATES_AT_ONCE, config.noise_dim, seed, config.epochs, execution.device)
    noise = next(fresh.blocks())
    recompute_batch_norm(mapping, noise[:count], config.batch_size, seed)
    if config.correct_moments:
        blocks = (
            mapping.to_unit(rows.to(execution.device))
            for rows in unless_stopped(latents.split(ROWS_IN_FLOAT64))
        )
        correct_moments(mapping, map_candidates(mapping, noise, execution), *moments(blocks))
    if config.residuals > 0:
        match_residuals(mapping, latents, noise[:count], config.residuals, seed, execution)


def recompute_batch_norm(mapping: MappingNetwork, noise: Tensor, batch_size: int, seed: int) -> None:
    """Measure the batch-norm statistics again: those kept in training belong to other weights."""
    shard = Shard(len(noise), batch_size, rank(), ranks())
    batches = (rows for rows, _ in shard.batches(seed, "imle", "batch_norm"))
    update_bn((noise[shard.start + rows] for rows in unless_stopped(batches)), mapping.network)


def correct_moments(mapping: MappingNetwork, projected: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Find the affine map that gives projected outputs [m, d] a mean [d] and covariance [d, d].

    It is the optimal transport between the two Gaussians (Peyré & Cuturi, arXiv:1803.00567, eq. 2.41). On the
    sphere, projecting the result changes its moments again, so the map is found in a few rounds.

    Raises
    ------
    Stopped
        If a signal asked for it.
    """
    matrix = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    offset = torch.zeros_like(mean)
    rounds = MOMENT_ROUNDS if mapping.on_sphere else 1
    with progress("imle, moments", rounds * len(projected), "samples") as advance:
        for _ in range(rounds):
            blocks = unless_stopped(projected.split(ROWS_IN_FLOAT64), advance)
            reached, spread = moments(mapping.project(rows.double() @ matrix + offset) for rows in blocks)
            root, inverse = _powers(spread, 0.5, -0.5)
            (middle,) = _powers(root @ covariance @ root, 0.5)
            transport = inverse @ middle @ inverse
            matrix, offset = matrix @ transport, (offset - reached) @ transport + mean
    mapping.matrix.copy_(matrix)
    mapping.offset.copy_(offset)


def moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean [d] and covariance [d, d], in float64, of rows that come in blocks [b, d]."""
    count = 0
    center = total = products = torch.zeros(())
    for block in blocks:
        rows = block.double()
        if not count:  # sums of squares around a nearby point lose no digits
            center = rows.mean(dim=0)
            total, products = torch.zeros_like(center), center.new_zeros(len(center), len(center))
        rows = rows - center
        total += rows.sum(dim=0)
        products.addmm_(rows.T, rows)
        count += len(rows)
    rest = total / count
    return center + rest, products / count - torch.outer(rest, rest)


def _powers(matrix: Tensor, *exponents: float) -> list[Tensor]:
    """Return powers of a symmetric matrix; eigenvalues near 0 are raised to a small positive value."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(max(1e-6 * values[-1].item(), 1e-12))
    return [vectors * values**exponent @ vectors.T for exponent in exponents]


def match_residuals(
    mapping: MappingNetwork, latents: Tensor, noise: Tensor, share: float, seed: int, execution: Execution
) -> None:
    """Match up to `RESIDUALS` latents with candidates of the finished mapping, and keep their differences."""
    draws = stream(seed, "imle", "residuals")
    some = torch.randperm(len(latents), generator=draws)[:RESIDUALS].to(latents.device)
    wanted = mapping.to_unit(latents[some].to(execution.device, torch.float32))
    candidates = map_candidates(mapping, noise, execution)
    with progress("imle, residuals", len(wanted), "latents") as advance:
        rows = [
            nearest_in_blocks(part, [candidates], precision=execution.precision)[1]
            for part in unless_stopped(wanted.split(MAPPED_AT_ONCE), advance)
        ]
    keep_residuals(mapping, candidates[torch.cat(rows)], wanted, share, draws)


def keep_residuals(
    mapping: MappingNetwork, candidates: Tensor, latents: Tensor, share: float, draws: torch.Generator
) -> None:
    """Give every candidate the residual of a matched pair nearby.

    Every candidate becomes an anchor. Its residual comes from one of the `NEIGHBOURS` nearest pairs, never
    from its own: samples must not be led back to the training latents.

    Parameters
    ----------
    mapping
        Gets the anchors and residuals.
    candidates
        float32 [m, d], unit coordinates; rows are equal where latents share a candidate. If all are equal,
        no anchor can borrow a residual, and none is kept.
    latents
        float32 [m, d], unit coordinates: row i was matched with candidate i.
    share
        Factor on the differences, 0 to 1.
    draws
        The generator that chooses among the nearest pairs.
    """
    anchors, anchor_of = candidates.unique(dim=0, return_inverse=True)
    if len(anchors) == 1:
        return
    k = min(NEIGHBOURS, len(candidates) - int(anchor_of.bincount().max()))
    lenders = []
    for rows in torch.arange(len(anchors), device=anchors.device).split(ROWS_AT_ONCE):
        apart = torch.cdist(anchors[rows], candidates)
        apart[rows[:, None] == anchor_of] = torch.inf
        lenders.append(apart.topk(k, largest=False).indices)
    choice = torch.randint(k, (len(anchors), 1), generator=draws).to(anchors.device)
    lender = torch.cat(lenders).gather(1, choice)[:, 0]
    mapping.set_residuals(anchors, share * (latents - candidates)[lender])
