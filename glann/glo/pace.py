"""How the time of the training divides into its coarse part and the rest, whose steps take longer."""

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.glo.losses import FeatureDistance, Perceptual
from glann.images.tensors import to_float, upload
from glann.runtime.compute import Execution

TIMED = 2  # steps of each part


def share_of_time(
    loss: object, decoder: nn.Module, latents: Tensor, images: NDArray[np.uint8], execution: Execution
) -> Callable[[float], float]:
    """Time a few steps, and return which share of the time has passed when a share of the steps is done.

    Nothing is learned in these steps, and no random number is drawn that training uses.

    Parameters
    ----------
    loss
        What `reconstruction_loss` returned. Only a `Perceptual` one has two parts.
    decoder
        Its gradients are cleared.
    latents
        float [b, d], of one batch.
    images
        uint8 [b, h, h, c].
    execution
        Device and precision.
    """
    if not isinstance(loss, Perceptual) or loss.coarse is None:
        return lambda share: share
    targets = to_float(upload(images, execution))
    decoder.eval()  # batch-norm statistics stay as they are

    def step(compared: FeatureDistance) -> float:
        started = time.monotonic()
        with execution.autocast():
            distance = compared(decoder(latents), targets, torch.arange(len(images)), torch.Generator())
        distance.backward()
        distance.item()  # waits for a GPU
        return time.monotonic() - started

    def seconds(compared: FeatureDistance) -> float:
        step(compared)  # includes what happens only once
        return min(step(compared) for _ in range(TIMED))

    slow, fast, coarse = seconds(loss.fine), seconds(loss.coarse), loss.config.coarse
    decoder.train()
    decoder.zero_grad(set_to_none=True)
    whole = coarse * fast + (1 - coarse) * slow
    return lambda share: (min(share, coarse) * fast + max(share - coarse, 0.0) * slow) / whole
