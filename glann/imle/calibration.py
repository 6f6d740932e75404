"""Properties of a mapping that are measured, not learned: its range before training, the rest after it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from glann.imle.matching import (
    CANDIDATES_AT_ONCE,
    MAPPED_AT_ONCE,
    Group,
    map_candidates,
    noise_blocks,
    of_one,
)
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
    mapping: MappingNetwork,
    latents: Tensor,
    groups: Sequence[Group],
    config: Imle,
    seed: int,
    execution: Execution,
) -> None:
    """Measure batch-norm statistics, moments and residuals of the trained mapping.

    Parameters
    ----------
    mapping
        The moving average after training.
    latents
        float [n, d]; all of them.
    groups
        Which of them share candidates, from `groups_of`.
    config
        The `imle` section of params.yaml.
    seed
        Seed of the noise.
    execution
        Device and precision.
    """
    drawn = max(ROWS_IN_FLOAT64, CANDIDATES_AT_ONCE // len(groups))

    def noise_of(group: Group) -> Tensor:
        return _fresh(replace(group, count=drawn), config, seed, execution)

    as_matched = [noise_of(group)[: group.count].clone() for group in groups]
    recompute_batch_norm(mapping, as_matched, groups, config.batch_size, seed)
    if config.correct_moments:
        for group in groups:
            outputs = map_candidates(mapping, noise_of(group), execution, group.label)
            wanted = _moments_wanted(mapping, latents, group, outputs)
            matrix, offset = moment_correction(mapping, outputs, *wanted)
            at = ... if group.label is None else group.label
            mapping.matrix[at], mapping.offset[at] = matrix.float(), offset.float()
    if config.residuals > 0:
        match_residuals(mapping, latents, as_matched, groups, config.residuals, seed, execution)


def _fresh(group: Group, config: Imle, seed: int, execution: Execution) -> Tensor:
    """Draw noise that was not used in training, float32 [group.count, e]."""
    return next(noise_blocks(group, config.noise_dim, seed, config.epochs, execution))


def recompute_batch_norm(
    mapping: MappingNetwork, noise: Sequence[Tensor], groups: Sequence[Group], batch_size: int, seed: int
) -> None:
    """Measure the batch-norm statistics again: those kept in training belong to other weights."""
    inputs = torch.cat([*noise])
    labels = [of_one(group.label, rows) for rows, group in zip(noise, groups, strict=True)]
    of_inputs = torch.cat([of for of in labels if of is not None]) if labels[0] is not None else None
    shard = Shard(len(inputs), batch_size, rank(), ranks())
    batches = (shard.start + rows for rows, _ in shard.batches(seed, "imle", "batch_norm"))
    read = (
        mapping.read(inputs[rows], None if of_inputs is None else of_inputs[rows])
        for rows in unless_stopped(batches)
    )
    update_bn(read, mapping.network)


def _moments_wanted(
    mapping: MappingNetwork, latents: Tensor, group: Group, outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean [d] and covariance [d, d], in float64, that the outputs [m, d] of a group should have.

    They are those of its latents, in unit coordinates. But the covariance of n latents is unreliable if n is
    not much larger than d, and a class may have few. So it is mixed with that of the outputs, n² : d².
    """
    rows = latents[group.rows]
    n, d = rows.shape
    blocks = unless_stopped(rows.split(ROWS_IN_FLOAT64))
    mean, covariance = moments(mapping.to_unit(block.to(outputs.device)) for block in blocks)
    if group.label is None:
        return mean, covariance
    _, reached = moments(outputs.split(ROWS_IN_FLOAT64))
    return mean, torch.lerp(reached, covariance, n**2 / (n**2 + d**2))


def moment_correction(
    mapping: MappingNetwork, projected: Tensor, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the affine map that gives projected outputs [m, d] a mean [d] and covariance [d, d].

    It is the optimal transport between the two Gaussians (Peyré & Cuturi, arXiv:1803.00567, eq. 2.41). On the
    sphere, projecting the result changes its moments again, so the map is found in a few rounds.

    Returns
    -------
    tuple
        Its matrix [d, d] and offset [d], in float64.

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
    return matrix, offset


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
    mapping: MappingNetwork,
    latents: Tensor,
    noise: Sequence[Tensor],
    groups: Sequence[Group],
    share: float,
    seed: int,
    execution: Execution,
) -> None:
    """Match up to `RESIDUALS` latents with candidates of the finished mapping, and keep their differences."""
    draws = stream(seed, "imle", "residuals")
    some = torch.randperm(len(latents), generator=draws)[:RESIDUALS].to(latents.device)
    chosen = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
    chosen[some] = True
    kept, labels = [], []
    with progress("imle, residuals", len(some), "latents") as advance:
        for group, candidates in zip(groups, noise, strict=True):
            rows = some if isinstance(group.rows, slice) else group.rows[chosen[group.rows]]
            if not len(rows):
                continue
            wanted = mapping.to_unit(latents[rows].to(execution.device, torch.float32))
            mapped = map_candidates(mapping, candidates, execution, group.label)
            matched = [
                nearest_in_blocks(part, [(mapped, mapped)], precision=execution.precision)[1]
                for part in unless_stopped(wanted.split(MAPPED_AT_ONCE), advance)
            ]
            kept.append(borrowed_residuals(torch.cat(matched), wanted, share, draws))
            labels += [group.label] * len(kept[-1][0])
    anchors, residuals = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if len(anchors):
        of_anchors = torch.tensor(labels, device=anchors.device) if groups[0].label is not None else None
        mapping.set_residuals(anchors, residuals, of_anchors)


def borrowed_residuals(
    candidates: Tensor, latents: Tensor, share: float, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give every candidate the residual of a matched pair nearby.

    Every candidate becomes an anchor. Its residual comes from one of the `NEIGHBOURS` nearest pairs, never
    from its own: samples must not be led back to the training latents.

    Parameters
    ----------
    candidates
        float32 [m, d], unit coordinates; rows are equal where latents share a candidate. If all are equal,
        no anchor can borrow a residual, and none is returned.
    latents
        float32 [m, d], unit coordinates: row i was matched with candidate i.
    share
        Factor on the differences, 0 to 1.
    draws
        The generator that chooses among the nearest pairs.

    Returns
    -------
    tuple
        Anchors and residuals, both float32 [a, d].
    """
    anchors, anchor_of = candidates.unique(dim=0, return_inverse=True)
    if len(anchors) == 1:
        return anchors[:0], anchors[:0]
    k = min(NEIGHBOURS, len(candidates) - int(anchor_of.bincount().max()))
    lenders = []
    for rows in torch.arange(len(anchors), device=anchors.device).split(ROWS_AT_ONCE):
        apart = torch.cdist(anchors[rows], candidates)
        apart[rows[:, None] == anchor_of] = torch.inf
        lenders.append(apart.topk(k, largest=False).indices)
    choice = torch.randint(k, (len(anchors), 1), generator=draws).to(anchors.device)
    lender = torch.cat(lenders).gather(1, choice)[:, 0]
    return anchors, share * (latents - candidates)[lender]
