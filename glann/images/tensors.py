"""Images as tensors: uint8 [n, h, w, c], as on disk, become float tensors, and back."""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glann.runtime.compute import Execution

THUMBNAILS_AT_ONCE = 256  # images


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return float32 [len(values)] on a device. It is copied there once: each copy would make a GPU wait."""
    return torch.tensor(values, device=device)


def upload(images: NDArray[Any], execution: Execution) -> Tensor:
    """Copy images uint8 [b, h, w, c], which may be memory-mapped, to the device."""
    return execution.to_device(torch.tensor(np.asarray(images)))


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 [b, h, w, c] into float32 [b, c, h, w] in [0, 1], channels last in memory."""
    # The permuted view of [b, h, w, c] is [b, c, h, w] in channels-last order: no data is moved.
    return images.permute(0, 3, 1, 2).float() / 255


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Turn float [b, c, h, w] in [0, 1] into uint8 [b, h, w, c]."""
    images: NDArray[np.uint8] = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return images


def thumbnails(images: NDArray[np.uint8], side: int, chosen: NDArray[np.int64] | None = None) -> Tensor:
    """Average images, or the chosen ones, down to `side` px or less: float32 [n, f] in [0, 1] on the CPU."""
    chosen = np.arange(len(images)) if chosen is None else chosen
    rows = []
    for start in range(0, len(chosen), THUMBNAILS_AT_ONCE):
        block = torch.tensor(np.asarray(images[chosen[start : start + THUMBNAILS_AT_ONCE]]))
        block = block.permute(0, 3, 1, 2).float() / 255
        if block.shape[-1] > side:
            block = F.interpolate(block, size=(side, side), mode="area")
        rows.append(block.flatten(1))
    return torch.cat(rows)
