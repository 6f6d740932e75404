"""The reconstruction losses of GLO."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.glo.settings import Loss
from glann.images.pyramid import laplacian_pyramid
from glann.images.tensors import to_float, upload
from glann.networks.texture import draw_directions, level_weight, sliced_wasserstein
from glann.networks.vgg import features_at, shapes_at, vgg16, vgg16_structure
from glann.runtime.compute import Execution
from glann.runtime.console import say
from glann.runtime.memory import Activations, activations, activations_in_float32, check_memory
from glann.runtime.processes import rank
from glann.runtime.progress import progress
from glann.training.batches import Inputs

MULTI_SCALE_ABOVE = 64  # px; larger images are also compared at a quarter of their size, as in the paper
CACHED_AT_ONCE = 64  # images


class ReconstructionLoss(Protocol):
    """Distance of decoded images and their targets."""

    def draw(self, draws: torch.Generator, done: float) -> Inputs:
        """Draw what is random in a step: crops and directions, on the CPU.

        Parameters
        ----------
        draws
            The generator.
        done
            The fraction of the training that is done, in [0, 1).
        """

    def enter(self, done: float) -> Hashable:
        """Go to the part of the training that comes after a fraction of it, and name this part.

        Calls come in the order of training. What earlier parts kept is dropped.
        """

    def __call__(self, decoded: Tensor, targets: Tensor, rows: Tensor, drawn: Inputs) -> Tensor:
        """Return the mean distance, float32 [].

        Parameters
        ----------
        decoded, targets
            Float [b, c, h, w] in [0, 1].
        rows
            int64 [b]: which images the targets are.
        drawn
            What `draw` returned, on the device of the images; there may be more in it.
        """


def reconstruction_loss(config: Loss, execution: Execution, images: NDArray[np.uint8]) -> ReconstructionLoss:
    """Return the loss that `config` describes.

    Parameters
    ----------
    config
        The `glo.loss` section of params.yaml.
    execution
        Device and precision.
    images
        All images that will be targets, uint8 [n, h, h, c].
    """
    if config.kind == "perceptual":
        return Perceptual(config, execution, images)
    return Plain(LOSSES[config.kind])


def loss_activations(config: Loss, batch: tuple[int, int, int, int], execution: Execution) -> Activations:
    """Return what the loss of images [b, c, h, w] stores: for the backward pass, and of their targets."""
    size, targets = batch[-1], 4 * math.prod(batch)
    plain = l1 if config.kind == "perceptual" else LOSSES[config.kind]
    pixels = activations_in_float32(lambda images: plain(images, images.detach()), batch)
    if config.kind != "perceptual":
        return Activations(pixels.stored + targets, pixels.largest)
    window = min(size, config.crop or size)
    vgg = activations(vgg16_structure(config.levels), (batch[0], 3, window, window), execution)
    # At the end of each level, there are features of the targets, and their differences.
    compared = sum(channels * positions for channels, positions in shapes_at(window, config.levels))
    compared *= 2 * batch[0] * execution.precision.itemsize
    return Activations(pixels.stored + targets + vgg.stored + compared, max(pixels.largest, vgg.largest))


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


@dataclass
class Plain:
    """One of `LOSSES` as a `ReconstructionLoss`: nothing is random, and there is only one part."""

    distance: Callable[[Tensor, Tensor], Tensor]

    def draw(self, draws: torch.Generator, done: float) -> Inputs:
        """Draw nothing."""
        return {}

    def enter(self, done: float) -> Hashable:
        """Return the only part."""
        return None

    def __call__(self, decoded: Tensor, targets: Tensor, rows: Tensor, drawn: Inputs) -> Tensor:
        """Compare decoded images with targets."""
        return self.distance(decoded, targets)


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
        size = images.shape[1]
        self.fine = FeatureDistance(network, config, execution, config.levels, config.texture, size)
        self.coarse = None
        self.cached_bytes = self.fine.keep(images, config.cache_gib * 2**30)
        room = config.cache_gib * 2**30 - self.cached_bytes
        if config.coarse > 0:
            # Level 5 halves the size four times, so it needs 16 px.
            levels = min(config.levels, 5 if size // 2 >= 16 else 4)
            self.coarse = FeatureDistance(network, config, execution, levels, 0.0, size, halve=True)
            self.cached_bytes += self.coarse.keep(images, room)

    def draw(self, draws: torch.Generator, done: float) -> Inputs:
        """Draw window and directions, see `ReconstructionLoss`."""
        coarse = self.coarse if done < self.config.coarse else None
        return (coarse or self.fine).draw(draws)

    def enter(self, done: float) -> Hashable:
        """Return whether this is the coarse part. After it, its features are dropped."""
        if done >= self.config.coarse:
            self.coarse = None
        return self.coarse is not None

    def __call__(self, decoded: Tensor, targets: Tensor, rows: Tensor, drawn: Inputs) -> Tensor:
        """Compare decoded images with targets, see `ReconstructionLoss`."""
        compared = self.coarse or self.fine
        pixels = self.config.pixel_weight * l1(decoded, targets)
        return pixels + compared(decoded, targets, rows, drawn)


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
    size: int  # px, of whole images
    halve: bool = False
    kept: list[Tensor] | None = None  # features of all targets, each level [n, h, w, c]

    def draw(self, draws: torch.Generator) -> Inputs:
        """Draw window and directions for a step."""
        size, drawn = self.size // (2 if self.halve else 1), {}
        if self.config.crop is not None and self.config.crop < size:
            drawn["window"] = _random_window(size, self.config.crop, draws)
            size = self.config.crop
        if self.texture:
            for level, (channels, positions) in enumerate(shapes_at(size, self.levels)):
                of_level = draw_directions(channels, positions, draws)
                drawn[f"directions {level}"], drawn[f"positions {level}"] = of_level
        return drawn

    def __call__(self, decoded: Tensor, targets: Tensor, rows: Tensor, drawn: Inputs) -> Tensor:
        """Compare decoded images with targets, see `ReconstructionLoss`."""
        decoded = self._resized(decoded)
        if self.kept is not None:
            wanted = [level[rows].permute(0, 3, 1, 2) for level in self.kept]
            return _distance(self._features(decoded, self.levels), wanted, self.texture, drawn)
        targets, size = self._resized(targets), decoded.shape[-1]
        seen, seen_targets = decoded, targets
        if "window" in drawn:
            assert self.config.crop is not None
            seen, seen_targets = (_cut(x, drawn["window"], self.config.crop) for x in (decoded, targets))
        total = self._at_one_scale(seen, seen_targets, self.levels, self.texture, drawn)
        if size > MULTI_SCALE_ABOVE:
            small, small_targets = F.avg_pool2d(decoded, 4), F.avg_pool2d(targets, 4)
            total = total + self._at_one_scale(small, small_targets, min(self.levels, 4), 0.0, drawn)
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
        self, decoded: Tensor, targets: Tensor, levels: int, texture: float, drawn: Inputs
    ) -> Tensor:
        with torch.no_grad():
            wanted = self._features(targets, levels)
        return _distance(self._features(decoded, levels), wanted, texture, drawn)


def _distance(found: list[Tensor], wanted: list[Tensor], texture: float, drawn: Inputs) -> Tensor:
    """Return the sum over levels of the mean absolute difference plus `texture` times that of textures."""
    total = torch.zeros((), device=found[0].device)
    for level, (a, b) in enumerate(zip(found, wanted, strict=True)):
        total = total + _MeanAbsolute.apply(a, b) * level_weight(level, len(found), texture)
        if texture:
            along = drawn[f"directions {level}"], drawn[f"positions {level}"]
            total = total + texture * sliced_wasserstein(a, b, *along).mean()
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


def _random_window(size: int, crop: int, draws: torch.Generator) -> Tensor:
    """Return the first row and the first column of a window of `crop` px, int64 [2]."""
    # Uniform draws would hardly ever reach the corners: draw from a larger range, then clamp.
    room = size - crop
    draw = torch.randint(-(room // 2), room + room // 2 + 1, (2,), generator=draws)
    return draw.clamp(0, room)


def _cut(images: Tensor, window: Tensor, crop: int) -> Tensor:
    """Return a window of `crop` px of images [b, c, h, w]: [b, c, crop, crop]."""
    if not window.is_cuda:
        top, left = window.tolist()
        return images[..., top : top + crop, left : left + crop]
    rows, columns = window[:, None] + torch.arange(
        crop, device=window.device
    )  # no number is read from the GPU
    cut = images.index_select(2, rows).index_select(3, columns)
    return cut.contiguous(memory_format=torch.channels_last)
