"""Training a rival on images, with the decoder of GLANN."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.errors import GlannError
from glann.glo.settings import Loss
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.peers.energy import EnergyStep
from glann.peers.gan import GanStep
from glann.peers.judges import JudgeNetwork
from glann.peers.ogan import OganStep
from glann.peers.settings import SNAPSHOTS, Peer, WganGp
from glann.peers.step import PeerStep
from glann.peers.vae import VaeStep
from glann.peers.wgan_gp import WganGpStep
from glann.runtime.compute import Execution
from glann.runtime.memory import activations, check_memory, weight_bytes
from glann.runtime.processes import rank, ranks
from glann.runtime.randomness import noise_rows
from glann.training.batches import read_ahead
from glann.training.checkpoints import Checkpoints
from glann.training.course import Course
from glann.training.optimization import recompute_batch_norm
from glann.training.replay import Replay
from glann.training.shards import Shard
from glann.training.state import Parts
from glann.training.variety import SETTLED_AFTER, draws_one_picture
from glann.training.watch import SHOWN, Watch

STEPS: Mapping[str, type[PeerStep]] = {
    "vae": VaeStep,
    "gan": GanStep,
    "wgan_gp": WganGpStep,
    "ogan": OganStep,
    "energy": EnergyStep,
}
REMEDY = "lower {0}.lr ({1:g}), or clip gradients by {0}.parameter_groups, in peers/params.yaml"
MOST_ROWS, LEAST_BATCHES = 10_000, 20  # of noise with which batch-norm statistics are measured


@dataclass
class PeerResult:
    """A trained rival.

    Attributes
    ----------
    decoder
        The moving average of the trained decoder, in evaluation mode.
    judge
        The trained discriminator or encoder, in evaluation mode.
    snapshots
        Earlier states of `decoder`, by the fraction of the training that was done.
    history
        Per epoch: its number, counted from 1, and the mean loss of the judge.
    """

    decoder: DecoderNetwork
    judge: JudgeNetwork
    snapshots: dict[float, DecoderNetwork]
    history: list[dict[str, float]]


def train_peer(
    name: str,
    images: NDArray[np.uint8],
    config: Peer,
    architecture: DecoderArchitecture,
    loss: Loss,
    seed: int,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
    watch: Watch | None = None,
) -> PeerResult:
    """Train a rival.

    Parameters
    ----------
    name
        Which one, a key of `STEPS`.
    images
        uint8 [n, h, h, c]; may be memory-mapped.
    config
        Its section of peers/params.yaml.
    architecture
        The decoder.
    loss
        The reconstruction loss, for a rival that has one.
    seed
        Seed of every random draw.
    execution
        Device and precision.
    checkpoints
        Where to resume from and save to. None: neither.
    watch
        Shows samples while the training runs. None: nothing does.

    Raises
    ------
    DivergedError
        If the loss is not finite, or all samples become one picture.
    GlannError
        If the images do not fit the decoder, or there is not enough memory.
    """
    check_images(images, architecture, config)
    n = len(images)
    shard = Shard(n, images_at_once(config), rank(), ranks())
    _check_memory(name, architecture, config, execution)
    own = images[shard.start : shard.stop]
    step = STEPS[name](name, own, architecture, config, loss, shard, seed, execution)
    take_step = Replay(step, step.optimizer, execution)
    snapshots = nn.ModuleList(DecoderNetwork(architecture) for _ in SNAPSHOTS).to(execution.device)
    parts: Parts = {
        "networks": step.networks,
        "average": step.average,
        "optimizer": step.optimizer,
        "snapshots": snapshots,
    }
    noise = noise_rows(0, SHOWN, architecture.latent_dim, seed, name, "watch").to(execution.device)
    shown, batch = [F.normalize(noise, dim=1)], -(-config.batch_size // ranks())
    average = step.average.module
    assert isinstance(average, DecoderNetwork)
    epochs = max(1, round(config.images / n))
    with Course(
        name,
        "images",
        parts,
        shard,
        epochs,
        config.schedule,
        checkpoints,
        REMEDY.format(name, step.lr),
        falls=name == "vae",
    ) as course:
        for _ in course.epochs():
            for x in read_ahead(step.read, course.batches(seed), execution):
                before = course.done
                found = take_step(x, phase=step.phase(before))
                after = (course.steps_done + 1) / (epochs * shard.steps)
                for fraction, kept in zip(SNAPSHOTS, snapshots, strict=True):
                    if before < fraction <= after:
                        kept.load_state_dict(average.state_dict())
                course.step(found, len(x["rows"]))
                if watch and watch.due():
                    watch.look(average, shown, course.history, course.done, execution)
            course.end_epoch()
            if watch:
                watch.note(course.history[-1])
            looked_at = course.steps_done >= SETTLED_AFTER or course.done >= 1
            if looked_at and draws_one_picture(average, shown[0], images, batch, execution):
                course.stop("all samples are one picture")

    kept_at = dict(zip(SNAPSHOTS, snapshots, strict=True))
    for decoder in (average, *snapshots):
        measured_with = shares_of_noise(architecture, seed, name, n, config.batch_size)
        recompute_batch_norm(decoder, (share.to(execution.device) for share in measured_with), execution)
    if watch and watch.begun:
        watch.look(average, shown, course.history, 1.0, execution)
    judge = step.networks["judge"]
    assert isinstance(judge, JudgeNetwork)
    earlier = {at: decoder.eval() for at, decoder in kept_at.items() if isinstance(decoder, DecoderNetwork)}
    return PeerResult(average.eval(), judge.eval(), earlier, course.history)


def images_at_once(config: Peer) -> int:
    """Return the number of images per step."""
    return config.batch_size * (config.critic_steps if isinstance(config, WganGp) else 1)


def identity(latent_dim: int) -> MappingNetwork:
    """Return the mapping of a decoder that reads noise: onto the unit sphere, and nothing else."""
    return MappingNetwork(
        MappingArchitecture(config=None, noise_dim=latent_dim, latent_dim=latent_dim)
    ).eval()


def check_images(images: NDArray[np.uint8], architecture: DecoderArchitecture, config: Peer) -> None:
    """Check that a rival can be trained on images, given as for `train_peer`.

    Raises
    ------
    GlannError
        If their shape or type is wrong, or there are too few.
    """
    wanted = (architecture.size, architecture.size, architecture.channels)
    if images.dtype != np.uint8 or images.shape[1:] != wanted or len(images) < 2:
        raise GlannError(
            f"peers: needs two or more images as uint8 [n, {', '.join(map(str, wanted))}], found "
            f"{images.dtype} {list(images.shape)}; run: dvc repro"
        )
    smallest = len(images) // Shard(len(images), images_at_once(config)).steps  # batch
    if isinstance(config, WganGp) and smallest < (needed := 2 * config.critic_steps * ranks()):
        raise GlannError(
            f"peers/params.yaml: wgan_gp.critic_steps: {config.critic_steps} steps need {needed} images or "
            f"more, there are {smallest} per batch; lower it"
        )


def _check_memory(name: str, architecture: DecoderArchitecture, config: Peer, execution: Execution) -> None:
    """Refuse a run that cannot fit: decoder, a judge as large, and what the step of both stores."""
    batch = max(2, -(-config.batch_size // ranks()))
    with torch.device("meta"):
        decoder = DecoderNetwork(architecture)
    drawn = activations(decoder, (batch, architecture.latent_dim), execution)
    needed = 2 * weight_bytes(decoder) + 3 * drawn.stored + 2 * drawn.largest
    knobs = f"{name}.batch_size ({config.batch_size}) in peers/params.yaml, or glo.decoder.width"
    check_memory(name, needed, execution, f"{knobs} ({architecture.config.width})")


def shares_of_noise(
    architecture: DecoderArchitecture, seed: int, name: str, images: int, batch: int
) -> Iterator[Tensor]:
    """Yield this process's share of batches of noise on the unit sphere, float [b, d].

    All batches are full, since all have the same weight in the statistics.
    """
    batches = min(max(-(-images // batch), LEAST_BATCHES), max(1, MOST_ROWS // batch))
    noise = noise_rows(0, batches * batch, architecture.latent_dim, seed, name, "batch_norm")
    for rows in noise.split(batch):
        yield F.normalize(rows.tensor_split(ranks())[rank()], dim=1)
