"""IMLE in latent space: noise is mapped onto latents by nearest-neighbour matching (arXiv:1809.09087)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from glann.checkpoints import Checkpoints, Parts, flatten_state
from glann.compute import Execution
from glann.config import Imle
from glann.decoders import initialize
from glann.errors import DamagedFileError, GlannError
from glann.indexes import SearchIndex
from glann.mapping import ROWS_IN_FLOAT64, MappingArchitecture, MappingNetwork, moments
from glann.memory import check_memory
from glann.neighbors import checked_index, nearest_in_blocks
from glann.processes import all_rows, data_parallel, rank, ranks, rows_at_first, total
from glann.progress import progress
from glann.shards import Shard
from glann.stopping import unless_stopped
from glann.storage import file_digest, load_npy
from glann.streams import stream
from glann.training import TrainingRun, adam, learning_rate_factor, moving_average, step

CANDIDATES_AT_ONCE = 65_536  # drawn, mapped and searched before the next are
SMALLEST = 1e-15  # largest number among latents, whose squares are still exact in float32
REMEDY = "lower imle.lr, or clip gradients by imle.parameter_groups"
RESIDUALS = 10_000  # matched pairs, at most, whose residuals are kept
MAPPED_AT_ONCE = 2048  # so that activations stay in a processor's cache

Matched = tuple[Tensor, Tensor]
"""Squared distances float32 [n] to the matched candidates, and their noise float32 [n, e]."""


@dataclass
class ImleResult:
    """A fitted mapping.

    Attributes
    ----------
    mapping
        The moving average of the mapping, in evaluation mode.
    history
        Per epoch: its number from 1 on, the regression loss, and the mean squared distance from a latent to
        its nearest candidate; distances are in units of the latents' norm or spread.
    """

    mapping: MappingNetwork
    history: list[dict[str, float]]


def fit_imle(
    latents: Tensor,
    config: Imle,
    seed: int,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
    match: "Match | None" = None,
) -> ImleResult:
    """Fit the mapping: draw noise, map it, find each latent's nearest candidate, regress (GLANN, section 3).

    In a group of processes each matches and regresses its share of the latents; all share the candidates.

    Parameters
    ----------
    latents
        float [n, d], of any norm; all of them on every process.
    config
        The `imle` section of params.yaml.
    seed
        Of every random draw.
    execution
        Device and precision. Candidates are mapped and compared in it; the regression is float32, since its
        batches are too small to gain from less.
    checkpoints
        Where to resume from and to save to; None: neither.
    match
        Chooses each latent's noise, for research; None: the noise of the nearest candidate.

    Raises
    ------
    GlannError
        If there are fewer than 2 latents, one is not finite, the index cannot be built for them, memory will
        not suffice, or the loss stops being finite.
    """
    n, d = latents.shape
    count = max(2, round(config.candidates * n))
    _check(latents, count)
    index = checked_index(config.index, count, d)
    _check_memory(n, d, count, config, index, execution)
    architecture = MappingArchitecture(config=config.mapping, noise_dim=config.noise_dim, latent_dim=d)
    mapping = MappingNetwork(architecture)
    initialize(mapping, stream(seed, "imle", "mapping"))
    mapping.to(latents.device).fit_range(latents)
    mapping.to(execution.device)
    network = data_parallel(mapping.network)
    average = moving_average(mapping, config.ema)
    optimizer = adam(mapping.network, config.lr, config.parameter_groups)
    shard = Shard(n, config.batch_size, rank(), ranks())
    wanted = mapping.to_unit(latents[shard.start : shard.stop].to(execution.device, torch.float32))
    matched = wanted.new_zeros(len(wanted), config.noise_dim)
    nearest = torch.zeros((), dtype=torch.float64)
    match = match or match_nearest(config.index, execution.precision)
    parts: Parts = {"mapping": mapping, "average": average, "optimizer": optimizer}
    run = TrainingRun("imle", config.epochs, shard, checkpoints, REMEDY)

    def state() -> dict[str, Tensor]:
        return flatten_state(**parts) | {"matched": rows_at_first(matched), "nearest": nearest}

    like = {"matched": matched.new_empty(n, config.noise_dim, device="meta"), "nearest": nearest}
    if saved := run.resume(parts, like):
        matched.copy_(saved["matched"][shard.start : shard.stop])
        nearest = saved["nearest"]

    done = run.steps_done * n // shard.steps
    with progress("imle", config.epochs * n, "latents", done) as advance:
        for epoch in run.epochs_left():
            if epoch % config.refresh == 0 and run.step == 0:
                draws = NoiseDraws(count, config.noise_dim, seed, epoch, execution.device)
                candidates = partial(map_candidates, mapping, execution=execution)
                distances, matched = match(wanted, draws, candidates, matched)
                nearest = total(distances.double().sum()).cpu() / n

            mapping.train()
            for rows, weight in run.batches_left(shard.batches(seed, "imle", epoch, "order")):
                factor = learning_rate_factor(config.schedule, run.steps_done, config.epochs * shard.steps)
                loss = regression_loss(mapping.project(network(matched[rows])), wanted[rows], config.loss)
                (loss * weight).backward()
                run.add(loss, len(rows))
                step(optimizer, config.lr * factor)
                average.update_parameters(mapping)
                advance(len(rows) * ranks(), run.note)
                if run.checkpoint_due():
                    run.save(mapping, state())
            run.end_epoch(nearest=float(f"{nearest.item():.6g}"))

    run.save(mapping, state(), finished=True)
    trained = average.module
    assert isinstance(trained, MappingNetwork)
    _calibrate(trained, latents, config, count, seed, execution)
    return ImleResult(trained.eval(), run.history)


def match_nearest(index: str, precision: torch.dtype) -> "Match":
    """Return the match of the paper: each latent's nearest candidate (arXiv:1809.09087, algorithm 1)."""

    def match(
        latents: Tensor, draws: NoiseDraws, candidates: Callable[[Tensor], Tensor], before: Tensor
    ) -> Matched:
        distances, rows = nearest_in_blocks(latents, map(candidates, draws.blocks()), index, precision)
        return distances, draws.rows(rows)

    return match


def regression_loss(reached: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Return the mean distance of rows float [b, d], or the mean squared one.

    With "squared" the best answer for noise that several latents share is their mean, which is like none of
    them and nearer to the centre than they are; with "distance" it is their geometric median, and far
    latents pull no more than near ones.
    """
    squared = (reached - wanted).square().sum(dim=1)
    return squared.mean() if kind == "squared" else (squared + 1e-12).sqrt().mean()


def _check(latents: Tensor, count: int) -> None:
    if len(latents) < 2 or not latents.isfinite().all():
        raise GlannError("latents: imle needs 2 or more rows of finite numbers")
    largest = float(latents.abs().max())
    if largest and not SMALLEST < largest < 1 / SMALLEST:
        raise GlannError(f"latents: the largest number is {largest:g}; scale them to about 1 first")
    if ranks() > 1 and count < 2 * ranks():
        raise GlannError(
            f"imle.candidates: {count} draws for {len(latents)} latents are too few for {ranks()} processes; "
            "raise it, or lower compute.processes"
        )


def _check_memory(n: int, d: int, count: int, config: Imle, index: SearchIndex, execution: Execution) -> None:
    held = 4 * n * (d + 2 * config.noise_dim)
    candidates = 4 * min(count, CANDIDATES_AT_ONCE) * (d + config.noise_dim)
    if config.index != "Flat":  # block by block, joined, and in the index, with two numbers for each link
        candidates = 4 * count * (3 * d + 2 * index.links)
    knobs = f"imle.candidates ({config.candidates:g}), imle.noise_dim ({config.noise_dim})"
    check_memory("imle", held + candidates, execution, f"{knobs} or the number of latents ({n})")
    samples = (
        4 * CANDIDATES_AT_ONCE * (d + config.noise_dim) * (config.correct_moments or config.residuals > 0)
    )
    moments_of_them = 8 * (8 * d**2 + 4 * ROWS_IN_FLOAT64 * d) * config.correct_moments
    knobs = f"glo.latent_dim ({d}) or set imle.correct_moments to false"
    check_memory("imle", held + samples + moments_of_them, execution, knobs)


@dataclass(frozen=True)
class NoiseDraws:
    """The noise of an epoch's candidates: drawn in blocks, and again where it is needed again.

    Attributes
    ----------
    count
        Draws in all.
    dim
        Numbers per draw.
    seed, epoch
        Which draws.
    device
        Where they are wanted.
    """

    count: int
    dim: int
    seed: int
    epoch: int
    device: torch.device

    def blocks(self) -> Iterator[Tensor]:
        """Yield all draws, float32 [b, dim]."""
        for start in range(0, self.count, CANDIDATES_AT_ONCE):
            yield self._block(start)

    def rows(self, rows: Tensor) -> Tensor:
        """Return chosen draws: int64 [r] to float32 [r, dim]."""
        chosen = torch.empty(len(rows), self.dim, device=self.device)
        for start in range(0, self.count, CANDIDATES_AT_ONCE):
            here = (rows // CANDIDATES_AT_ONCE == start // CANDIDATES_AT_ONCE).nonzero()[:, 0]
            chosen[here] = self._block(start)[rows[here] - start]
        return chosen

    def _block(self, start: int) -> Tensor:
        size = min(CANDIDATES_AT_ONCE, self.count - start)
        generator = stream(self.seed, "imle", self.epoch, "noise", start)
        return torch.randn(size, self.dim, generator=generator).to(self.device)


Match = Callable[[Tensor, NoiseDraws, Callable[[Tensor], Tensor], Tensor], Matched]
"""Called with a rank's latents float32 [n, d], the draws, what maps noise [b, e] to candidates [b, d], and
the noise float32 [n, e] that was matched before (zeros at first); all before shift and scale."""


@torch.no_grad()
def map_candidates(mapping: MappingNetwork, noise: Tensor, execution: Execution) -> Tensor:
    """Map noise [b, e] to candidates [b, d] before shift and scale, by the statistics of evaluation mode.

    Each rank maps its share of the noise; all get all candidates.
    """
    mapping.eval()
    own = noise.tensor_split(ranks())[rank()]
    with execution.autocast():
        mapped = torch.cat([mapping.unit(part) for part in own.split(MAPPED_AT_ONCE)])
    return all_rows(mapped)


def _calibrate(
    mapping: MappingNetwork, latents: Tensor, config: Imle, count: int, seed: int, execution: Execution
) -> None:
    """Give the finished mapping what is measured, not learnt: statistics, moments, residuals.

    The checkpoint of the finished run is there already, so a run that is stopped here begins here again.
    """
    fresh = NoiseDraws(CANDIDATES_AT_ONCE, config.noise_dim, seed, config.epochs, execution.device)
    noise = next(fresh.blocks())
    _recompute_batch_norm(mapping, noise[:count], config.batch_size, seed)
    if config.correct_moments:
        blocks = (
            mapping.to_unit(rows.to(execution.device))
            for rows in unless_stopped(latents.split(ROWS_IN_FLOAT64))
        )
        mapping.correct_moments(map_candidates(mapping, noise, execution), *moments(blocks))
    if config.residuals > 0:
        _keep_residuals(mapping, latents, noise[:count], config.residuals, seed, execution)


def _recompute_batch_norm(mapping: MappingNetwork, noise: Tensor, batch_size: int, seed: int) -> None:
    """Measure batch-norm statistics again: those of training belong to other weights than the average."""
    shard = Shard(len(noise), batch_size, rank(), ranks())
    batches = (rows for rows, _ in shard.batches(seed, "imle", "batch_norm"))
    update_bn((noise[shard.start + rows] for rows in unless_stopped(batches)), mapping.network)


def _keep_residuals(
    mapping: MappingNetwork, latents: Tensor, noise: Tensor, share: float, seed: int, execution: Execution
) -> None:
    """Match latents, at most `RESIDUALS`, with candidates of the finished mapping; keep what lies between."""
    draws = stream(seed, "imle", "residuals")
    some = torch.randperm(len(latents), generator=draws)[:RESIDUALS].to(latents.device)
    wanted = mapping.to_unit(latents[some].to(execution.device, torch.float32))
    candidates = map_candidates(mapping, noise, execution)
    with progress("imle, residuals", len(wanted), "latents") as advance:
        rows = [
            nearest_in_blocks(part, [candidates], precision=execution.precision)[1]
            for part in unless_stopped(wanted.split(MAPPED_AT_ONCE), advance)
        ]
    mapping.keep_residuals(candidates[torch.cat(rows)], wanted, share, draws)


def load_latents(path: str | Path, sha256: str = "") -> Tensor:
    """Read latents from an .npy file of floats [n, d] as float32.

    Parameters
    ----------
    path
        The file.
    sha256
        Of the whole file, in hexadecimal; "" if any file will do.

    Raises
    ------
    GlannError
        If the file is missing, damaged, no array of floats, or not two-dimensional.
    """
    array = load_npy(path)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise GlannError(f"{path}: expected floats [n, d], found {array.dtype} {list(array.shape)}")
    if sha256 and file_digest(path) != sha256:
        raise DamagedFileError(
            path, "damaged: it is not the file that was made with the decoder (sha256 differs)"
        )
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
