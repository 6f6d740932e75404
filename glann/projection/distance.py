"""How far drawn images are from the pictures they are to show, by the loss of the decoder's training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glann.images.pyramid import laplacian_pyramid
from glann.networks.decoders.settings import Origin
from glann.networks.texture import draw_directions, level_weight, sliced_wasserstein
from glann.networks.vgg import features_at, vgg16
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream

SMALLEST_HALVED = 32  # px; smaller images are not compared at half their size


class Distance:
    """Distance of each image to its target: one number per image, unlike the losses of a training.

    Parameters
    ----------
    origin
        How images were compared in the training. Random directions for textures are drawn once. Images above
        64 px are compared whole, not at a quarter of their size too.
    weights
        File of VGG-16's weights, for "perceptual". None: torchvision downloads them.
    execution
        Device and precision.

    Raises
    ------
    GlannError
        If the weights cannot be loaded.
    """

    def __init__(self, origin: Origin, weights: str | None, execution: Execution):
        self.origin, self.execution = origin, execution
        self._vgg = None
        if origin.loss == "perceptual":
            network = vgg16(weights, origin.levels).to(execution.device, execution.precision)
            self._vgg = network.to(memory_format=torch.channels_last)

    def describe(self, images: Tensor, halve: bool = False) -> list[Tensor]:
        """Return what is compared of images, float [b, c, h, w] in [0, 1]: a list of float [b, ...].

        Parameters
        ----------
        images
            Pictures or drawn images.
        halve
            Whether to compare at half the size, which takes a quarter of the time.
        """
        if halve and images.shape[-1] >= SMALLEST_HALVED:
            images = F.avg_pool2d(images, 2)
        if self._vgg is None:
            return [images.float()]
        levels = min(self.origin.levels, 5 if images.shape[-1] >= 16 else 4)
        return [images.float(), *features_at(self._vgg, images, levels, self.execution.precision)]

    def between(self, found: list[Tensor], wanted: list[Tensor], halved: bool = False) -> Tensor:
        """Return the distance of each image to its target, float32 [b].

        Parameters
        ----------
        found, wanted
            What `describe` returned for both.
        halved
            Whether they are of half the size; textures are then left out, as in the training.
        """
        difference = found[0] - wanted[0]
        if self.origin.loss == "laplacian":
            return torch.stack([_size(level) for level in laplacian_pyramid(difference)]).sum(dim=0)
        if self._vgg is None:
            return _size(difference)
        total = self.origin.pixel_weight * _size(difference)
        texture, draws = 0.0 if halved else self.origin.texture, stream(0, "projection", "textures")
        for level, (a, b) in enumerate(zip(found[1:], wanted[1:], strict=True)):
            total = total + level_weight(level, len(found) - 1, texture) * _size(a - b)
            if texture:
                directions = draw_directions(a.shape[1], a[0, 0].numel(), draws)
                total = total + texture * sliced_wasserstein(
                    a, b, *(part.to(a.device) for part in directions)
                )
        return total


def _size(difference: Tensor) -> Tensor:
    """Return the mean absolute value of each row, float32 [b]."""
    return difference.abs().flatten(1).mean(dim=1, dtype=torch.float32)
