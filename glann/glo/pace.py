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
from glann.runtime.reporting import memory_ran_out

TIMED = 2  # steps of each part


def share_of_time(
    loss: object, decoder: nn.Module, latents: Tensor, images: NDArray[np.uint8], execution: Execution
) -> Callable[[float], float]:
    """Time a step of each part, and return which share of the time has passed when a share of steps is done.

    Nothing is learned, and no random number is drawn that training uses. If memory runs out, since both
    parts hold their features, all steps are taken to be equally long.

    Parameters
    ----------
    loss
        What `reconstruction_loss` returned. Only a `Perceptual` one may have two parts.
    decoder
        Its gradients are cleared.
    latents
        float [b, d], of one batch.
    images
        uint8 [b, h, h, c].
    execution
        Device and precision.
    """
    if not isinstance(loss, Perceptual) or loss.coarse is None or loss.config.coarse >= 1:
        return lambda share: share
    targets, rows = to_float(upload(images, execution)), execution.to_device(torch.arange(len(images)))
    drawn = {
        part.halve: {name: execution.to_device(x) for name, x in part.draw(torch.Generator()).items()}
        for part in (loss.fine, loss.coarse)
    }

    def step(compared: FeatureDistance) -> float:
        started = time.monotonic()
        with execution.autocast():
            distance = compared(decoder(latents), targets, rows, drawn[compared.halve])
        distance.backward()
        distance.item()  # waits for a GPU
        return time.monotonic() - started

    def seconds(compared: FeatureDistance) -> float:
        step(compared)  # includes what happens only once
        return min(step(compared) for _ in range(TIMED))

    decoder.eval()  # batch-norm statistics stay as they are
    try:
        slow, fast, coarse = seconds(loss.fine), seconds(loss.coarse), loss.config.coarse
    except RuntimeError as error:
        if not memory_ran_out(error):
            raise
        return lambda share: share
    finally:
        decoder.train()
        decoder.zero_grad(set_to_none=True)
    whole = coarse * fast + (1 - coarse) * slow
    return lambda share: (min(share, coarse) * fast + max(share - coarse, 0.0) * slow) / whole
