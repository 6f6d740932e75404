"""The reconstruction losses: what "looks like" means to GLO."""

from collections.abc import Callable
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor

from glann.compute import Execution
from glann.config import Loss
from glann.vgg import LEVEL_ENDS, normalize_for_vgg, vgg16

MULTI_SCALE_ABOVE = 64  # px; larger images are compared at a quarter of their size too, as in the paper


ReconstructionLoss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def reconstruction_loss(config: Loss, execution: Execution) -> ReconstructionLoss:
    """Return ``loss(images, targets, draws)``, one float32 number.

    Both images are float [b, c, h, w] in [0, 1]; `draws` decides what is random in the loss (crops).
    """
    if config.kind == "perceptual":
        return perceptual(config, execution)
    plain = {"l1": l1, "laplacian": laplacian}[config.kind]
    return lambda images, targets, draws: plain(images, targets)


def l1(images: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (images.float() - targets).abs().mean()


def laplacian(images: Tensor, targets: Tensor) -> Tensor:
    """Lap1: the L1 distance of Laplacian pyramids (GLO, arXiv:1707.05776).

    The paper sums 4^j |L_j| over level j; level j has 4^-j of the pixels, so that is a mean at every level.
    The pyramid is linear: the pyramid of the difference is the difference of the pyramids.
    """
    difference = images.float() - targets
    total = torch.zeros((), device=difference.device)
    while min(difference.shape[-2:]) >= 8:
        low = _blur(difference)[..., ::2, ::2]
        high = difference - F.interpolate(low, size=difference.shape[-2:], mode="bilinear")
        total = total + high.abs().mean()
        difference = low
    return total + difference.abs().mean()


def _blur(images: Tensor) -> Tensor:
    """Convolve both ways with [1, 4, 6, 4, 1] / 16, the kernel of Burt & Adelson (1983)."""
    channels = images.shape[1]
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    rows = F.conv2d(images, kernel.expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(rows, kernel[:, None].expand(channels, 1, 5, 1), groups=channels)


def perceptual(config: Loss, execution: Execution) -> ReconstructionLoss:
    """VGG-16 features at several levels plus the pixels, all by L1, as in the GLANN paper."""
    network = vgg16(config.weights, config.levels)
    network.to(execution.device).to(memory_format=torch.channels_last)

    def features(images: Tensor, levels: int) -> list[Tensor]:
        taps = []
        for i, layer in enumerate(network[: LEVEL_ENDS[levels - 1] + 1]):
            images = layer(images)
            if i in LEVEL_ENDS:
                taps.append(images)
        return taps

    def at_one_scale(images: Tensor, targets: Tensor, levels: int) -> Tensor:
        with torch.no_grad():
            wanted = features(normalize_for_vgg(targets), levels)
        found = features(normalize_for_vgg(images), levels)
        return torch.stack([F.l1_loss(a, b) for a, b in zip(found, wanted, strict=True)]).float().sum()

    def loss(images: Tensor, targets: Tensor, draws: torch.Generator) -> Tensor:
        total = config.pixel_weight * l1(images, targets)
        window = _random_window(images.shape[-1], config.crop, draws)
        total = total + at_one_scale(images[window], targets[window], config.levels)
        if images.shape[-1] > MULTI_SCALE_ABOVE:
            small, small_targets = F.avg_pool2d(images, 4), F.avg_pool2d(targets, 4)
            total = total + at_one_scale(small, small_targets, min(config.levels, 4))
        return total

    return loss


def _random_window(size: int, crop: int | None, draws: torch.Generator) -> tuple[slice | EllipsisType, ...]:
    if crop is None or crop >= size:
        return (...,)
    # Uniform draws would hardly ever reach the corners: draw from further out and move back inside.
    room = size - crop
    draw = torch.randint(-(room // 2), room + room // 2 + 1, (2,), generator=draws)
    top, left = draw.clamp(0, room).tolist()
    return ..., slice(top, top + crop), slice(left, left + crop)
