"""Whether a decoder still draws different pictures; one that draws a single picture does not recover."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.images.tensors import thumbnails
from glann.runtime.compute import Execution

SETTLED_AFTER = 500  # steps, after which pictures should differ
LOOKED_AT, LOOKED_AT_SIZE = 64, 64  # pictures that are looked at, and their size, px
LEAST_VARIETY = 0.02  # as a fraction of the variety of the images


@torch.no_grad()
def draws_one_picture(
    decoder: nn.Module, latents: Tensor, images: NDArray[np.uint8], batch: int, execution: Execution
) -> bool:
    """Return whether a decoder in training mode draws the same picture for all latents.

    Parameters
    ----------
    decoder, latents
        The decoder, and float [n, d] on its device, of which the first 64 are decoded.
    images
        uint8 [n, h, h, c], of which the first 64 tell how different pictures should be; may be memory-mapped.
    batch
        How many latents are decoded at once.
    execution
        Precision.
    """
    side = min(images.shape[1], LOOKED_AT_SIZE)
    decoder.eval()
    with execution.autocast():
        drawn = torch.cat([decoder(part).float() for part in latents[:LOOKED_AT].split(batch)])
    decoder.train()
    found = F.adaptive_avg_pool2d(drawn, side).std(dim=0).mean().item()
    wanted = thumbnails(images, side, np.arange(min(len(images), LOOKED_AT))).std(dim=0).mean().item()
    return found < LEAST_VARIETY * wanted
