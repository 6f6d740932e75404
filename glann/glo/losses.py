"""The reconstruction losses of GLO."""

from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.glo.settings import Loss
from glann.images.pyramid import laplacian_pyramid
from glann.images.tensors import to_float, upload
from glann.networks.texture import level_weight, sliced_wasserstein
from glann.networks.vgg import features_at, vgg16, vgg16_structure
from glann.runtime.compute import Execution
from glann.runtime.console import say
from glann.runtime.memory import activation_bytes, check_memory
from glann.runtime.processes import rank
from glann.runtime.progress import progress

MULTI_SCALE_ABOVE = 64  # px; larger images are also compared at a quarter of their size, as in the paper
CACHED_AT_ONCE = 64  # images

ReconstructionLoss = Callable[[Tensor, Tensor, Tensor, torch.Generator, float], Tensor]


def reconstruction_loss(config: Loss, execution: Execution, images: NDArray[np.uint8]) -> ReconstructionLoss:
    """Return ``loss(decoded, targets, rows, draws, done)``, one float32 number.

    Parameters
    ----------
    config
        The `glo.loss` section of params.yaml.
    execution
        Device and precision.
    images
        All images that will be targets, uint8 [n, h, h, c].

    Returns
    -------
    ReconstructionLoss
        Takes `decoded` and `targets`, float [b, c, h, w] in [0, 1]; `rows`, int64 [b], says which images the
        targets are; `draws` is the generator for random crops and directions; `done` is the fraction of the
        training that is done, in [0, 1).
    """
    if config.kind == "perceptual":
        return Perceptual(config, execution, images)
    plain = LOSSES[config.kind]
    return lambda decoded, targets, rows, draws, done: plain(decoded, targets)


def loss_bytes(config: Loss, batch_size: int, size: int, execution: Execution) -> int:
    """Return the bytes that the loss of a batch of images of `size` px stores for the backward pass."""
    if config.kind != "perceptual":
        return 0
    window = min(size, config.crop or size)
    return activation_bytes(vgg16_structure(config.levels), (batch_size, 3, window, window), execution)


def l1(images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return (images.float() - targets).abs().mean()


def laplacian(images: Tensor, targets: Tensor) -> Tensor:
    """Return the L1 distance of Laplacian pyramids, Lap1 (GLO, arXiv:1707.05776).

    The paper sums 4^j |L_j| over levels j. Level j has 4^-j of the pixels, so this is the sum of the means of
    all levels. The pyramid is linear, so it is computed once, for the difference.
    """
    difference = images.float() - targets
    total = torch.zeros((), device=difference.device)
    for level in laplacian_pyramid(difference):
        total = total + level.abs().mean()
    return total


LOSSES = {"l1": l1, "laplacian": laplacian}
"""Losses of decoded and target images alone; `Perceptual` also needs weights, memory and crops."""


class Perceptual:
    """L1 distance of VGG-16 features at several levels and of pixels, as in the GLANN paper.

    In the first part of the training, `config.coarse`, the features are those of images of half the size.
    After it, `config.texture` adds the distance of the textures. Calls come in the order of training: once
    the coarse part is over, its features are dropped.

    Attributes
    ----------
    cached_bytes
        What the cached features take at first.
    """

    def __init__(self, config: Loss, execution: Execution, images: NDArray[np.uint8]):
        self.config = config
        network = vgg16(config.weights, config.levels)
        network.to(execution.device, execution.precision).to(memory_format=torch.channels_last)
        self.fine = FeatureDistance(network, config, execution, config.levels, config.texture)
        self.coarse = None
        self.cached_bytes = self.fine.keep(images, config.cache_gib * 2**30)
        room = config.cache_gib * 2**30 - self.cached_bytes
        if config.coarse > 0:
            # Level 5 halves the size four times, so it needs 16 px.
            levels = min(config.levels, 5 if images.shape[1] // 2 >= 16 else 4)
            self.coarse = FeatureDistance(network, config, execution, levels, texture=0.0, halve=True)
            self.cached_bytes += self.coarse.keep(images, room)

    def __call__(
        self, decoded: Tensor, targets: Tensor, rows: Tensor, draws: torch.Generator, done: float
    ) -> Tensor:
        """Compare decoded images with targets, see `reconstruction_loss`."""
        if done >= self.config.coarse:
            self.coarse = None
        compared = self.coarse or self.fine
        pixels = self.config.pixel_weight * l1(decoded, targets)
        return pixels + compared(decoded, targets, rows, draws)


@dataclass
class FeatureDistance:
    """Distance of the VGG-16 features of images, at their full size or at half of it.

    The features of the targets never change. If whole images are compared and there is room, they are
    computed only once.
    """

    network: nn.Sequential
    config: Loss
    execution: Execution
    levels: int
    texture: float
    halve: bool = False
    kept: list[Tensor] | None = None  # features of all targets, each level [n, h, w, c]

    def __call__(self, decoded: Tensor, targets: Tensor, rows: Tensor, draws: torch.Generator) -> Tensor:
        """Compare decoded images with targets, see `reconstruction_loss`."""
        decoded = self._resized(decoded)
        if self.kept is not None:
            wanted = [level[rows].permute(0, 3, 1, 2) for level in self.kept]
            return _distance(self._features(decoded, self.levels), wanted, self.texture, draws)
        targets, size = self._resized(targets), decoded.shape[-1]
        window = _random_window(size, self.config.crop, draws)
        total = self._at_one_scale(decoded[window], targets[window], self.levels, self.texture, draws)
        if size > MULTI_SCALE_ABOVE:
            small, small_targets = F.avg_pool2d(decoded, 4), F.avg_pool2d(targets, 4)
            total = total + self._at_one_scale(small, small_targets, min(self.levels, 4), 0.0, draws)
        return total

    @torch.no_grad()
    def keep(self, images: NDArray[np.uint8], room: float) -> int:
        """Compute the features of all images if these are compared whole and they fit into `room` bytes.

        The blocks never change, so a resumed run computes the same bytes.

        Returns
        -------
        int
            The bytes that they take, 0 if they are not kept.
        """
        size = images.shape[1] // (2 if self.halve else 1)
        if size > MULTI_SCALE_ABOVE or (self.config.crop is not None and self.config.crop < size):
            return 0

        def of(block: NDArray[np.uint8]) -> list[Tensor]:
            return self._features(self._resized(to_float(upload(block, self.execution))), self.levels)

        one = of(images[:1])
        needed = len(images) * sum(level.nbytes for level in one)
        what = "features of the images" + " at half their size" * self.halve
        if needed > room:
            if self.config.cache_gib > 0 and rank() == 0:
                say(
                    f"glo: {what} take {needed / 2**30:.3g} GiB per process, but {room / 2**30:.3g} of "
                    f"glo.loss.cache_gib ({self.config.cache_gib:g}) are left; they are computed in each "
                    f"step{' of the coarse part' * self.halve}, which takes longer"
                )
            return 0
        knob = f"glo.loss.cache_gib ({self.config.cache_gib:g}) to 0, so that they are computed in each step"
        check_memory("glo: features of all images", needed, self.execution, knob)
        shapes = [level.permute(0, 2, 3, 1).shape[1:] for level in one]
        self.kept = [one[0].new_empty(len(images), *shape) for shape in shapes]
        with progress(f"glo: {what}", len(images), "images") as advance:
            for start in range(0, len(images), CACHED_AT_ONCE):
                block = images[start : start + CACHED_AT_ONCE]
                for level, found in zip(self.kept, of(block), strict=True):
                    level[start : start + len(block)] = found.permute(0, 2, 3, 1)
                advance(len(block))
        return needed

    def _resized(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 2) if self.halve else images

    def _features(self, images: Tensor, levels: int) -> list[Tensor]:
        return features_at(self.network, images, levels, self.execution.precision)

    def _at_one_scale(
        self, decoded: Tensor, targets: Tensor, levels: int, texture: float, draws: torch.Generator
    ) -> Tensor:
        with torch.no_grad():
            wanted = self._features(targets, levels)
        return _distance(self._features(decoded, levels), wanted, texture, draws)


def _distance(found: list[Tensor], wanted: list[Tensor], texture: float, draws: torch.Generator) -> Tensor:
    """Return the sum over levels of the mean absolute difference plus `texture` times that of textures."""
    total = torch.zeros((), device=found[0].device)
    for level, (a, b) in enumerate(zip(found, wanted, strict=True)):
        total = total + _MeanAbsolute.apply(a, b) * level_weight(level, len(found), texture)
        if texture:
            total = total + texture * sliced_wasserstein(a, b, draws).mean()
    return total


class _MeanAbsolute(torch.autograd.Function):
    """Mean of |found - wanted|, with half the memory traffic of F.l1_loss.

    Each image's sum is accumulated in float32. In bfloat16 it is then rounded to 8 bits; the mean over images
    is not rounded.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor) -> Tensor:
        difference = found - wanted
        ctx.save_for_backward(difference)
        return difference.abs().sum(dim=(1, 2, 3)).float().sum() / difference.numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference.sign().mul_((gradient / difference.numel()).to(difference.dtype)), None


def _random_window(size: int, crop: int | None, draws: torch.Generator) -> tuple[slice | EllipsisType, ...]:
    if crop is None or crop >= size:
        return (...,)
    # Uniform draws would hardly ever reach the corners: draw from a larger range, then clamp.
    room = size - crop
    draw = torch.randint(-(room // 2), room + room // 2 + 1, (2,), generator=draws)
    top, left = draw.clamp(0, room).tolist()
    return ..., slice(top, top + crop), slice(left, left + crop)
