"""Rows and images in blocks of a fixed size."""

import itertools
from collections.abc import Iterable

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glann.runtime.randomness import BLOCK

LARGEST_OF_BLOCK = 128  # px; 64 images of 1024 px would need 8 GiB and more


def collected(blocks: Iterable[NDArray[np.uint8]], count: int) -> NDArray[np.uint8]:
    """Join blocks of images uint8 [b, h, w, c]; `count` is their total number."""
    blocks = iter(blocks)
    first = next(blocks)
    images = np.empty((count, *first.shape[1:]), np.uint8)
    done = 0
    for block in itertools.chain([first], blocks):
        images[done : done + len(block)] = block
        done += len(block)
    return images


def decoded_at_once(size: int) -> int:
    """Return how many images of `size` px are decoded at once: `BLOCK`, or fewer with as many pixels."""
    return max(1, BLOCK * LARGEST_OF_BLOCK**2 // max(size, LARGEST_OF_BLOCK) ** 2)


def whole_blocks(rows: Tensor, size: int = BLOCK) -> list[Tensor]:
    """Split rows into blocks of `size` rows; the last one is padded with zeros.

    The order of sums in networks depends on the batch size. With a fixed size, the result for a row depends
    on that row only.
    """
    missing = -len(rows) % size
    return list(F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing)).split(size))
