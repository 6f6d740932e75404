"""How many images a rival sees in a given time."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from glann.glo.settings import Loss
from glann.networks.decoders.network import DecoderArchitecture
from glann.peers.settings import MOST_IMAGES, Peer, Vae
from glann.peers.train import STEPS, images_at_once
from glann.runtime.compute import Execution
from glann.runtime.console import say
from glann.training.batches import read_ahead
from glann.training.course import Batch
from glann.training.replay import Replay
from glann.training.shards import Shard

WARM_UP, ROUND = 20, 20  # steps before the timing, and between two looks at the clock
LONGEST = 20.0  # seconds of a timing


def images_in(
    seconds: float,
    name: str,
    images: NDArray[np.uint8],
    config: Peer,
    architecture: DecoderArchitecture,
    loss: Loss,
    execution: Execution,
) -> int:
    """Train a rival for a few seconds, and return how many images it sees in a longer time.

    What happens once counts too, such as the features of all images in a perceptual loss.

    Parameters
    ----------
    seconds
        The time.
    name, images, config, architecture, loss, execution
        As for `train_peer`.

    Returns
    -------
    int
        Rounded down to three digits, but at least as many as there are images, and at most `MOST_IMAGES`.
    """
    shard = Shard(len(images), images_at_once(config))
    started = time.monotonic()
    step = STEPS[name](name, images, architecture, config, loss, shard, 0, execution)
    once = time.monotonic() - started
    shares = {1.0: 1.0}  # of the steps, by when they are
    if isinstance(config, Vae) and loss.kind == "perceptual" and loss.coarse > 0:
        shares = {0.0: loss.coarse, 1.0: 1 - loss.coarse}
    take_step = Replay(step, step.optimizer, execution)
    per_image = 0.0
    for done, share in shares.items():
        steps, began, taken = 0, 0.0, 0.0
        for x in read_ahead(step.read, _batches(shard, done), execution):
            take_step(x, phase=step.phase(done))
            steps += 1
            if steps % ROUND:
                continue
            if execution.device.type == "cuda":
                torch.cuda.synchronize()
            if steps == WARM_UP:
                began = time.monotonic()
            elif (taken := time.monotonic() - began) > min(LONGEST, seconds / 10):
                break
        per_image += share * taken / ((steps - WARM_UP) * shard.strata)
    count = int(max(0.0, seconds - once) / per_image)
    digits = 10 ** max(0, len(str(count)) - 3)
    say(f"{name}: {1 / per_image:.4g} images/s, {once:.1f} s before the first")
    if count < len(images):
        least = once + len(images) * per_image
        takes = f"{least:.0f}" if least >= 1 else f"{least:.1g}"
        say(
            f"{name}: it gets the least there is, a pass over all {len(images):,} images, which takes "
            f"{takes} s instead of {seconds:g} s"
        )
    return min(max(len(images), count // digits * digits), MOST_IMAGES)


def _batches(shard: Shard, done: float) -> Iterator[Batch]:
    """Yield batches for ever."""
    step = 0
    while True:
        for rows, weight in shard.batches(0, "pace", step):
            yield Batch(rows, weight, step, min(done, 1 - 1e-9), 1.0)
            step += 1
