"""What the page asks of a model, without the page; several people may ask at once."""

import math
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glann.editing.directions import SAMPLES, Direction, load_directions, move, sensitive
from glann.errors import GlannError
from glann.projection.photos import projector_of, read_photos
from glann.projection.projector import Projector
from glann.runtime.randomness import noise_rows
from glann.sample.animation import walk
from glann.sample.generator import Generator, slerp

DIRECTIONS = 6  # sliders, unless the user brings directions
MOST_FRAMES, MOST_WALKED = 600, 2**28  # pictures, and bytes, of an animation
LIKE = 0.35  # of the way from a sample to others, where samples like it are drawn


@dataclass(frozen=True)
class Drawn:
    """A grid: images uint8 [n, h, w, c], and what they come from.

    That is noise float32 [n, e], its truncation, and classes int64 [n], if the model has any.
    """

    images: NDArray[np.uint8]
    noise: Tensor
    truncation: float
    labels: Tensor | None


class PageModel:
    """A generator with what the page needs of it; slow parts are made when they are first used.

    Parameters
    ----------
    generator
        The trained generator.
    data
        The folder ``data`` of its training, if it is there.
    weights
        File of VGG-16's weights, if the decoder was trained with a perceptual loss. None: download them.
    directions
        Files of `glann direction`. None: the most sensitive directions.
    """

    def __init__(
        self, generator: Generator, data: Path, weights: Path | None, directions: list[Path] | None = None
    ):
        self.generator, self.data, self.weights = generator, data, weights
        self._files = directions or []
        # Networks run one call at a time: two at once would be slower than both in turn.
        self._lock = threading.Lock()

    def grid(self, count: int, seed: int, truncation: float, class_name: str | None = None) -> Drawn:
        """Draw the images of `Generator.sample`."""
        labels = self.generator.labels(count, seed, class_name)
        return self._drawn(noise_rows(0, count, self._noise_dim, seed, "sample"), truncation, labels)

    def more_like(self, drawn: Drawn, chosen: int, count: int, seed: int) -> Drawn:
        """Draw one image of a grid again, and others like it."""
        noise = drawn.noise[chosen : chosen + 1]
        others = noise_rows(0, count, self._noise_dim, seed, "page", "more")
        nearby = slerp(noise.expand_as(others), others, torch.tensor(LIKE))
        of_chosen = None if drawn.labels is None else drawn.labels[chosen].expand(count)
        return self._drawn(torch.cat([noise, nearby[1:]]), drawn.truncation, of_chosen)

    def walk(
        self, seeds: list[int], steps: int, truncation: float, class_name: str | None = None
    ) -> NDArray[np.uint8]:
        """Draw the way from one sample to the next, uint8 [t, h, w, c].

        Raises
        ------
        GlannError
            If there are fewer than two seeds, or if these are too many pictures.
        """
        frames = len(seeds) * steps
        if frames > MOST_FRAMES or frames * math.prod(self.generator.shape) > MOST_WALKED:
            raise GlannError("too many pictures: visit fewer seeds, or take fewer steps")
        with self._lock:
            return walk(self.generator, seeds, steps, truncation, class_name)

    def find(self, photo: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Tensor, bool]:
        """Put a photograph into the model.

        Returns
        -------
        tuple
            The photograph as it was prepared and what the model draws, both uint8 [h, w, c]; its latent
            float32 [d]; whether it is foreign to the model.
        """
        with self._lock:
            _, pictures = read_photos([photo], self.generator.decoder.architecture)
            found = self.projector.project(pictures[:1])
        return pictures[0], found.images[0], found.latents[0], bool(found.foreign and found.foreign[0])

    def edited(self, latent: Tensor, strengths: list[float]) -> NDArray[np.uint8]:
        """Move a latent float32 [d] along all directions, and draw it: uint8 [h, w, c]."""
        with self._lock:
            return self.generator.decode(move(latent[None], self.directions, strengths), title=None)[0]

    def prepare_photographs(self) -> None:
        """Do at once what else the first photograph would have to wait for.

        Raises
        ------
        GlannError
            If weights cannot be loaded, or if directions belong to another model.
        """
        assert self.projector and self.directions

    @cached_property
    def projector(self) -> Projector:
        """Finds latents of photographs."""
        return projector_of(self.generator, self.data, self.weights)

    @cached_property
    def directions(self) -> list[Direction]:
        """What the sliders change."""
        if self._files:
            return [way for path in self._files for way in load_directions(path, self.generator)]
        return sensitive(self.generator, self.generator.sample_latents(SAMPLES), DIRECTIONS)

    @property
    def _noise_dim(self) -> int:
        return self.generator.mapping.architecture.noise_dim

    def _drawn(self, noise: Tensor, truncation: float, labels: Tensor | None) -> Drawn:
        with self._lock:
            images = self.generator.decode(self.generator.map(noise, truncation, labels), title=None)
        return Drawn(images, noise, truncation, labels)
