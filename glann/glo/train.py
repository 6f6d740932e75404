"""GLO: every image has its own latent, optimised together with the decoder (arXiv:1707.05776)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.errors import GlannError
from glann.glo.latents import LatentNoise, LatentTable, initial_latents
from glann.glo.losses import loss_activations, reconstruction_loss
from glann.glo.pace import share_of_time
from glann.glo.settings import Glo
from glann.glo.start import load_earlier, start_from
from glann.glo.step import GloStep
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import SIZES_MADE
from glann.networks.layers import initialize
from glann.runtime.compute import Execution
from glann.runtime.console import say
from glann.runtime.memory import activations, check_memory, weight_bytes
from glann.runtime.processes import rank, ranks, rows_at_first
from glann.runtime.randomness import stream
from glann.training.batches import read_ahead
from glann.training.checkpoints import Checkpoints
from glann.training.course import Course
from glann.training.optimization import MovingAverage, adam, recompute_batch_norm
from glann.training.replay import Replay
from glann.training.shards import Shard
from glann.training.state import Parts
from glann.training.variety import SETTLED_AFTER, draws_one_picture
from glann.training.watch import Watch

SMALLEST_OF_DCGAN = min(SIZES_MADE["dcgan"])  # px


@dataclass
class GloResult:
    """A trained decoder and its latents.

    Attributes
    ----------
    latents
        float32 [n, d], unit rows; row i belongs to image i. In a group of processes, rank 0 has all
        latents, the others have those of their own images.
    decoder
        The moving average of the trained decoder, in evaluation mode.
    history
        Per epoch: its number, counted from 1, and the mean loss.
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
    watch: Watch | None = None,
) -> GloResult:
    """Minimise the reconstruction loss over all latents and the decoder (GLO, eq. 1).

    In a group of processes, each has a share of the images and their latents; all have the same decoder.

    Parameters
    ----------
    images
        uint8 [n, h, h, c]; may be memory-mapped.
    config
        The `glo` section of params.yaml.
    seed
        Seed of every random draw.
    execution
        Device and precision.
    checkpoints
        Where to resume from and save to. None: neither.
    watch
        Shows reconstructions while the training runs. None: nothing does.

    Raises
    ------
    GlannError
        If images are not as described, the decoder cannot make their size, there is not enough memory, or
        the loss goes wrong. The last names epoch, step and the last good checkpoint.
    """
    _check(images, config)
    n, size, _, channels = images.shape
    shard = Shard(n, config.batch_size, rank(), ranks())
    architecture = DecoderArchitecture(
        config=config.decoder,
        latent_dim=config.latent_dim,
        size=size,
        channels=channels,
        origin=config.loss.origin,
    )
    _check_memory(architecture, config, shard, execution)
    own = images[shard.start : shard.stop]
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(seed, "glo", "decoder"))
    if config.start_from is None:
        first = initial_latents(images, config, seed, shard.start, shard.stop)
    else:
        first = start_from(load_earlier(config.start_from, config.latent_dim), own, decoder)
    first = first.to(execution.device)
    table = LatentTable(first, shard)
    perturb = LatentNoise(config.latent_noise, first, shard, seed)
    decoder.to(execution.device).to(memory_format=torch.channels_last)
    average = MovingAverage(decoder, config.ema)
    optimizer = adam(decoder.network, config.decoder_lr, config.parameter_groups)
    loss_of = reconstruction_loss(config.loss, execution, own)
    step = GloStep(own, table, perturb, decoder, optimizer, average, loss_of, config, seed, execution)
    take_step = Replay(step, optimizer, execution)
    parts: Parts = {"decoder": decoder, "average": average, "optimizer": optimizer, "table": table}
    batch = -(-shard.strata // shard.ranks)

    def pace(done: float) -> Callable[[float], float]:
        if done >= config.loss.coarse:
            return lambda share: share
        return share_of_time(loss_of, decoder, first[:batch], own[:batch], execution)

    with Course(
        "glo", "images", parts, shard, config.epochs, config.schedule, checkpoints, _remedy(execution), pace
    ) as course:
        for _ in course.epochs():
            for x in read_ahead(step.read, course.batches(seed), execution):
                loss = take_step(x, phase=loss_of.enter(course.done))
                course.step(loss, len(x["rows"]))
                if watch and watch.due():
                    watch.look(average.module, [table.latents], course.history, course.done, execution)
            course.end_epoch()
            if watch:
                watch.note(course.history[-1])
            _check_variety(course, decoder, table, own, execution)

    trained = average.module
    assert isinstance(trained, DecoderNetwork)
    batches = shard.batches(seed, "glo", "batch_norm")
    recompute_batch_norm(trained, (table.latents[rows] for rows, _ in batches), execution)
    if watch and watch.begun:
        watch.look(trained, [table.latents], course.history, 1.0, execution)
    return GloResult(rows_at_first(table.latents).cpu(), trained.eval(), course.history)


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


def memory_of_glo(
    architecture: DecoderArchitecture, config: Glo, rows: int, batch: int, execution: Execution
) -> int:
    """Return the bytes that training needs on a device, without cached features.

    Parameters
    ----------
    architecture
        The decoder.
    config
        The `glo` section of params.yaml.
    rows, batch
        Number of images, and of images per step, of this process.
    execution
        Device and precision.
    """
    d = architecture.latent_dim
    with torch.device("meta"):
        decoder = DecoderNetwork(architecture)
    drawn = activations(decoder, (batch, d), execution)
    shape = (batch, architecture.channels, architecture.size, architecture.size)
    compared = loss_activations(config.loss, shape, execution)
    gradients = 2 * max(drawn.largest, compared.largest)  # of a layer's output and of its input
    return (3 * d + 1) * 4 * rows + weight_bytes(decoder) + drawn.stored + compared.stored + gradients


def _check_memory(architecture: DecoderArchitecture, config: Glo, shard: Shard, execution: Execution) -> None:
    batch = -(-shard.strata // shard.ranks)
    needed = memory_of_glo(architecture, config, shard.stop - shard.start, batch, execution)
    knobs = [f"glo.batch_size ({config.batch_size})", f"glo.decoder.width ({config.decoder.width})"]
    if config.loss.kind == "perceptual":
        window = min(config.loss.crop or architecture.size, architecture.size)
        knobs += [f"glo.loss.crop ({window} px)", f"glo.loss.levels ({config.loss.levels})"]
    check_memory("glo", needed, execution, f"{', '.join(knobs)} or glo.latent_dim ({config.latent_dim})")


def _check_variety(
    course: Course, decoder: nn.Module, table: LatentTable, images: NDArray[np.uint8], execution: Execution
) -> None:
    """Stop a run whose decoder draws the same picture for all latents.

    A run that is too short for this check ends with a message.
    """
    settled = course.steps_done >= SETTLED_AFTER
    if not settled and course.done < 1:
        return
    batch = -(-course.shard.strata // course.shard.ranks)  # as many at once as a step has memory for
    if not draws_one_picture(decoder, table.latents, images, batch, execution):
        return
    if settled:
        course.stop(
            f"the loss will not fall: all latents decode to one picture ({course.history[-1]['loss']:g})"
        )
    other = "infogan" if images.shape[1] < SMALLEST_OF_DCGAN else "dcgan"
    say(f"glo: all latents decode to one picture; {_remedy(execution)}, or try glo.decoder.kind {other}")
