"""Laplacian pyramids of images (Burt & Adelson, 1983)."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from glann.images.tensors import constant


def laplacian_pyramid(images: Tensor) -> Iterator[Tensor]:
    """Yield the levels of the pyramid of float [b, c, h, w], the finest first and the remainder last.

    A level has half the height and width of the one before; the last one is less than 8 px high or wide.
    """
    while min(images.shape[-2:]) >= 8:
        low = _blur(images)[..., ::2, ::2]
        yield images - F.interpolate(low, size=images.shape[-2:], mode="bilinear")
        images = low
    yield images


def _blur(images: Tensor) -> Tensor:
    """Convolve rows and columns with [1, 4, 6, 4, 1] / 16."""
    channels = images.shape[1]
    kernel = constant((1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16), images.device)
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(images, kernel.expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(rows, kernel[:, None].expand(channels, 1, 5, 1), groups=channels)
