"""GLO: every image owns a latent; latents and decoder are optimised together (arXiv:1707.05776)."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from glann.checkpoints import Checkpoints, Parts, flatten_state
from glann.compute import Execution
from glann.config import SIZES_MADE, Glo
from glann.decoders import DecoderArchitecture, DecoderNetwork, initialize
from glann.errors import GlannError
from glann.latents import LatentNoise, LatentTable, initial_latents
from glann.losses import loss_bytes, reconstruction_loss
from glann.memory import activation_bytes, check_memory, weight_bytes
from glann.pixels import to_float, upload
from glann.processes import data_parallel, rank, ranks, rows_at_first
from glann.progress import progress
from glann.shards import Shard
from glann.streams import stream
from glann.training import TrainingRun, adam, learning_rate_factor, moving_average, step

Item = TypeVar("Item")
Result = TypeVar("Result")

LOOKED_AT = 64  # images whose variety is watched
SETTLED_AFTER = 500  # steps, by which pictures differ
LEAST_VARIETY = 0.02  # of the images' own


@dataclass
class GloResult:
    """A trained decoder and its latents.

    Attributes
    ----------
    latents
        float32 [n, d], unit rows; row i belongs to image i. In a group of processes rank 0 has all,
        the others have those of their own images.
    decoder
        The moving average of the trained decoder, in evaluation mode.
    history
        Per epoch: its number from 1 on and the mean loss.
    """

    latents: Tensor
    decoder: DecoderNetwork
    history: list[dict[str, float]]


def train_glo(
    images: NDArray[np.uint8],
    config: Glo,
    seed: int,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
) -> GloResult:
    """Minimise the reconstruction loss over all latents and the decoder (GLO, eq. 1).

    In a group of processes each has its share of the images with their latents; all have the same decoder.

    Parameters
    ----------
    images
        uint8 [n, h, h, c], may be memory-mapped.
    config
        The `glo` section of params.yaml.
    seed
        Of every random draw.
    execution
        Device and precision.
    checkpoints
        Where to resume from and to save to; None: neither.

    Raises
    ------
    GlannError
        If images are not as described, the decoder cannot make their size, or the loss stops being
        finite (naming epoch, step and the last good checkpoint).
    """
    _check(images, config)
    n, size, _, channels = images.shape
    shard = Shard(n, config.batch_size, rank(), ranks())
    architecture = DecoderArchitecture(
        config=config.decoder, latent_dim=config.latent_dim, size=size, channels=channels
    )
    _check_memory(architecture, config, shard, execution)
    table = LatentTable(initial_latents(images, config, seed, shard.start, shard.stop).to(execution.device))
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(seed, "glo", "decoder"))
    decoder.to(execution.device).to(memory_format=torch.channels_last)
    parallel = data_parallel(decoder)
    average = moving_average(decoder, config.ema)
    optimizer = adam(decoder.network, config.decoder_lr, config.parameter_groups)
    own = images[shard.start : shard.stop]
    loss_of = reconstruction_loss(config.loss, execution, own)
    perturb = LatentNoise(config.latent_noise, table.latents, shard, seed)
    parts: Parts = {"decoder": decoder, "average": average, "optimizer": optimizer}
    run = TrainingRun("glo", config.epochs, shard, checkpoints, _remedy(execution))

    if saved := run.resume(parts, table.like(n)):
        table.restore(saved, shard.start, shard.stop)

    done = run.steps_done * n // shard.steps
    with progress("glo", config.epochs * n, "images", done) as advance:
        for epoch in run.epochs_left():
            batches = run.batches_left(shard.batches(seed, "glo", epoch, "order"))
            for rows, weight, targets in read_ahead(own, batches, execution):
                i = run.steps_done
                factor = learning_rate_factor(config.schedule, i, config.epochs * shard.steps)
                latents = table.rows(rows)
                with execution.autocast():
                    decoded = parallel(perturb(latents, rows, i))
                    loss = loss_of(decoded, targets, rows, stream(seed, "glo", i, "loss"))
                (loss * weight).backward()
                run.add(loss, len(rows))
                step(optimizer, config.decoder_lr * factor)
                table.step(rows, latents, config.latent_lr * factor, len(rows) / weight)
                average.update_parameters(decoder)
                advance(len(rows) * ranks(), run.note)
                if run.checkpoint_due():
                    run.save(decoder, flatten_state(**parts) | table.state())
            run.end_epoch()
            _check_variety(run, decoder, table.latents[:LOOKED_AT], own[:LOOKED_AT], execution)

    run.save(decoder, flatten_state(**parts) | table.state(), finished=True)
    trained = average.module
    assert isinstance(trained, DecoderNetwork)
    _recompute_batch_norm(trained, table, shard, seed, execution)
    return GloResult(rows_at_first(table.latents).cpu(), trained.eval(), run.history)


def _check(images: NDArray[np.uint8], config: Glo) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise GlannError(
            f"glo: needs two or more images as uint8 [n, h, w, c], found {images.dtype} {list(images.shape)}"
        )
    sizes = SIZES_MADE[config.decoder.kind]
    if images.shape[1] != images.shape[2] or images.shape[1] not in sizes:
        raise GlannError(
            f"glo.decoder.kind: {config.decoder.kind} makes squares of {', '.join(map(str, sizes))} px, "
            f"the images are {images.shape[2]} x {images.shape[1]}"
        )


def _remedy(execution: Execution) -> str:
    reduced = ", or set compute.precision to float32" * (execution.precision != torch.float32)
    return f"lower glo.latent_lr and glo.decoder_lr, clip gradients by glo.parameter_groups{reduced}"


def _check_memory(architecture: DecoderArchitecture, config: Glo, shard: Shard, execution: Execution) -> None:
    d, batch = config.latent_dim, -(-shard.strata // shard.ranks)
    with torch.device("meta"):
        decoder = DecoderNetwork(architecture)
    needed = (
        (3 * d + 1) * 4 * (shard.stop - shard.start)
        + weight_bytes(decoder)
        + activation_bytes(decoder, (batch, d), execution)
        + loss_bytes(config.loss, batch, architecture.size, execution)
    )
    knobs = [f"glo.batch_size ({config.batch_size})", f"glo.decoder.width ({config.decoder.width})"]
    if config.loss.kind == "perceptual":
        window = min(config.loss.crop or architecture.size, architecture.size)
        knobs += [f"glo.loss.crop ({window} px)", f"glo.loss.levels ({config.loss.levels})"]
    check_memory("glo", needed, execution, f"{', '.join(knobs)} or glo.latent_dim ({d})")


@torch.no_grad()
def _check_variety(
    run: TrainingRun, decoder: nn.Module, latents: Tensor, images: NDArray[np.uint8], execution: Execution
) -> None:
    """Stop a run whose decoder draws the same picture for all latents, from which it will not come back."""
    if run.steps_done < SETTLED_AFTER:
        return
    decoder.eval()
    with execution.autocast():
        decoded = decoder(latents).float()
    decoder.train()
    wanted = to_float(upload(images, execution))
    if decoded.std(dim=0).mean() < LEAST_VARIETY * wanted.std(dim=0).mean():
        run.stop(
            f"epoch {len(run.history)}",
            f"will not fall: all latents decode to one picture ({run.history[-1]['loss']:g})",
        )


def read_ahead(
    images: NDArray[np.uint8], batches: Iterator[tuple[Tensor, float]], execution: Execution
) -> Iterator[tuple[Tensor, float, Tensor]]:
    """Add its images, as `to_float` makes them, to every batch.

    For a GPU a thread reads the next batch during this one; on a CPU it would only take a core from others.
    """

    def read(batch: tuple[Tensor, float]) -> tuple[Tensor, float, Tensor]:
        rows, weight = batch
        return execution.to_device(rows), weight, upload(images[rows.numpy()], execution)

    ahead = map(read, batches) if execution.device.type == "cpu" else _in_thread(read, batches)
    for rows, weight, pixels in ahead:
        yield rows, weight, to_float(pixels)


def _in_thread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item; a thread is always one item ahead."""
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[Result] | None = None
        for item in items:
            following = thread.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()


@torch.no_grad()
def _recompute_batch_norm(
    decoder: nn.Module, table: LatentTable, shard: Shard, seed: int, execution: Execution
) -> None:
    """Measure batch-norm statistics anew: those kept in training belong to other weights than the average."""
    batches = shard.batches(seed, "glo", "batch_norm")
    with execution.autocast():
        update_bn((table.latents[rows] for rows, _ in batches), decoder)
