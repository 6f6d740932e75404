"""Projection: latents for pictures that a model has never seen (also called inversion).

A latent is optimised until the decoder draws the picture, as in Image2StyleGAN (Abdal et al., ICCV 2019,
arXiv:1904.03189), but from good guesses, as in Zhu et al. (ECCV 2016, arXiv:1609.03552).
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glann.errors import GlannError
from glann.images.regression import SIDE, fit_latents
from glann.images.tensors import thumbnails, to_float, upload
from glann.projection.distance import Distance
from glann.runtime.files import cache_folder, file_digest
from glann.runtime.npy import digest_of_rows
from glann.runtime.progress import progress
from glann.runtime.tensors import digest_of, load_tensors, on_cpu, save_tensors
from glann.sample.generator import Generator

PAIRS = 16_384  # training images, or samples, from which guesses are made
REFERENCE, LEAST_REFERENCE = 64, 50  # hold-out images that are measured; fewer would say little
GUESSES = 3  # per picture: that of a regression, and the latents of the most similar images
ROUGH_STEPS, ROUGH_LR = 60, 0.05  # with all guesses, at half the size of the images
FINE_STEPS, FINE_LR = 140, 0.02  # with the best of them
BATCH_PIXELS = 32 * 64 * 64  # of all images that are optimised at once
# A picture is foreign to the model if its distance is so many times that of the furthest hold-out image.
FOREIGN = 1.25


@dataclass(frozen=True)
class Known:
    """What a model was trained on.

    Attributes
    ----------
    images, latents
        Training images uint8 [n, h, w, c], which may be memory-mapped, and their latents float32 [n, d].
    holdout
        Images that it has never seen, uint8 [m, h, w, c].
    """

    images: NDArray[np.uint8]
    latents: Tensor
    holdout: NDArray[np.uint8]


@dataclass(frozen=True)
class Projection:
    """Pictures in a model.

    Attributes
    ----------
    latents
        float32 [n, d] of unit length, on the CPU.
    images
        What the model draws of them, uint8 [n, h, w, c].
    distances
        From each picture to what is drawn, see `Distance`, float32 [n].
    nearer
        Fraction of the hold-out images that have a smaller distance, float32 [n] from 0 to 1. None: there are
        too few hold-out images.
    foreign
        Whether each picture is much further from the model than all hold-out images are. None: as above.
    """

    latents: Tensor
    images: NDArray[np.uint8]
    distances: NDArray[np.float32]
    nearer: NDArray[np.float32] | None
    foreign: list[bool] | None


class Projector:
    """Finds latents for pictures.

    On first use for a generator, 64 hold-out images are measured, which takes a minute or two; their
    distances are kept in the user's cache folder.

    Parameters
    ----------
    generator
        The model.
    known
        What it was trained on, for better guesses and for comparison. None: guesses come from its samples.
    weights
        File of VGG-16's weights, if the decoder was trained with a perceptual loss. None: download them.

    Raises
    ------
    GlannError
        If weights cannot be loaded, or if what is known does not fit the generator.
    """

    def __init__(self, generator: Generator, known: Known | None = None, weights: str | None = None):
        self.generator, self.execution, self.shape = generator, generator.execution, generator.shape
        if known:
            self._check(known)
        self.distance = Distance(generator.decoder.architecture.origin, weights, self.execution)
        generator.decoder.requires_grad_(False)
        if known:
            rows = np.linspace(0, len(known.images) - 1, min(PAIRS, len(known.images))).astype(np.int64)
            self._latents = F.normalize(known.latents[rows], dim=1)
            self._small = thumbnails(known.images, SIDE, rows)
        else:
            self._latents = F.normalize(generator.sample_latents(PAIRS).cpu(), dim=1)
            blocks = generator.decode_blocks(self._latents)
            self._small = torch.cat([thumbnails(block, SIDE) for block in blocks])
        self._predict = fit_latents(self._small, self._latents)
        self.reference = np.empty(0, np.float32)
        if known and len(known.holdout) >= LEAST_REFERENCE:
            self.reference = self._measured(np.asarray(known.holdout[:REFERENCE]), weights)

    def project(self, images: NDArray[np.uint8], title: str = "project") -> Projection:
        """Find latents of pictures.

        Parameters
        ----------
        images
            uint8 [n, h, w, c], as large as the generator draws, and prepared as its training images were.
        title
            What the progress bar calls this.

        Raises
        ------
        GlannError
            If images have another type or shape.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.shape or len(images) == 0:
            raise GlannError(
                f"images: expected uint8 {['n', *self.shape]}, found {images.dtype} {[*images.shape]}"
            )
        latents, distances = self._found(images, title)
        nearer, foreign = None, None
        if len(self.reference):
            nearer = (np.searchsorted(self.reference, distances) / len(self.reference)).astype(np.float32)
            foreign = (distances > FOREIGN * self.reference[-1]).tolist()
        return Projection(latents, self.generator.decode(latents, title=None), distances, nearer, foreign)

    def _found(self, images: NDArray[np.uint8], title: str) -> tuple[Tensor, NDArray[np.float32]]:
        """Return latents, float32 [n, d] on the CPU, and distances, float32 [n]."""
        latents, distances = [], []
        size = max(1, BATCH_PIXELS // images[0, :, :, 0].size // GUESSES)  # pictures in a batch
        batches = -(-len(images) // size)
        with progress(title, batches * (ROUGH_STEPS + FINE_STEPS), "steps") as advance:
            for start in range(0, len(images), size):
                part = images[start : start + size]
                targets = to_float(upload(part, self.execution))
                guesses = self._guesses(part)  # => [b, g, d]
                repeated = targets.repeat_interleave(guesses.shape[1], dim=0)
                rough = self._optimized(guesses.flatten(0, 1), repeated, ROUGH_STEPS, ROUGH_LR, True, advance)
                best = self._distances(rough, repeated).unflatten(0, guesses.shape[:2]).argmin(dim=1)
                begun = rough.unflatten(0, guesses.shape[:2])[torch.arange(len(best)), best]
                fine = self._optimized(begun, targets, FINE_STEPS, FINE_LR, False, advance)
                latents.append(fine.cpu())
                distances.append(self._distances(fine, targets).cpu())
        return torch.cat(latents), torch.cat(distances).numpy()

    def _optimized(
        self, start: Tensor, targets: Tensor, steps: int, lr: float, halve: bool, advance: Callable[..., None]
    ) -> Tensor:
        """Return latents [b, d] after Adam on the sphere; each row sees only its own gradient."""
        with torch.no_grad():
            wanted = self.distance.describe(targets, halve)
        latents = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([latents], lr=lr, betas=(0.9, 0.99))
        for i in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * i / steps)) / 2
            with self.execution.autocast():
                drawn = self.generator.decoder(latents).float()
            distance = self.distance.between(self.distance.describe(drawn, halve), wanted, halve)
            (latents.grad,) = torch.autograd.grad(distance.sum(), latents)
            optimizer.step()
            with torch.no_grad():
                latents.copy_(F.normalize(latents, dim=1))
            advance(1)
        return latents.detach()

    @torch.no_grad()
    def _distances(self, latents: Tensor, targets: Tensor) -> Tensor:
        with self.execution.autocast():
            drawn = self.generator.decoder(latents).float()
        return self.distance.between(self.distance.describe(drawn), self.distance.describe(targets))

    def _guesses(self, images: NDArray[np.uint8]) -> Tensor:
        """Return starting points for each picture, float32 [b, g, d] of unit length."""
        small = thumbnails(images, SIDE)
        similar = min(GUESSES - 1, len(self._small))
        rows = torch.cdist(small, self._small).topk(similar, largest=False).indices
        guesses = torch.cat([self._predict(small)[:, None], self._latents[rows]], dim=1)
        return guesses.to(self.execution.device)

    def _check(self, known: Known) -> None:
        d = self.generator.decoder.architecture.latent_dim
        shapes = known.images.shape[1:], known.holdout.shape[1:]
        if shapes != (self.shape, self.shape) or known.latents.shape != (len(known.images), d):
            raise GlannError(
                f"known: images {[*shapes[0]]} and {[*shapes[1]]}, latents {[*known.latents.shape]} do "
                f"not belong to a generator of images {[*self.shape]} and latents [n, {d}]"
            )

    def _measured(self, holdout: NDArray[np.uint8], weights: str | None) -> NDArray[np.float32]:
        """Return the sorted distances of hold-out images, from the cache if they are there."""
        of = {
            "steps": [GUESSES, ROUGH_STEPS, ROUGH_LR, FINE_STEPS, FINE_LR],
            "origin": self.distance.origin.model_dump(),
            "weights": file_digest(weights) if weights else None,
            "numerics": self.execution.numerics,
            "holdout": digest_of_rows(holdout),
            "guesses": digest_of({"small": self._small, "latents": self._latents.contiguous()}, None),
        }
        key = digest_of(on_cpu(self.generator.decoder.state_dict()), of)
        path = cache_folder() / "projection" / f"{key}.safetensors"
        with suppress(GlannError, KeyError, OSError):
            return load_tensors(path)[0]["distances"].numpy()
        distances = np.sort(self._found(holdout, "project: hold-out images, once")[1])
        with suppress(OSError, GlannError):  # they can be measured again
            save_tensors(path, {"distances": torch.from_numpy(distances)})
        return distances
