"""Starting from an earlier run: its decoder, and its latents for the images that it knew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glann.errors import GlannError
from glann.glo.settings import EARLIER_FILES
from glann.images.regression import SIDE, fit_latents
from glann.images.tensors import thumbnails
from glann.networks.decoders.network import DecoderNetwork
from glann.runtime.console import say
from glann.runtime.npy import load_latents, load_npy
from glann.runtime.processes import rank
from glann.runtime.progress import progress

SAME = 4 / 255  # mean absolute difference below which two reduced images show the same; resizing changes less
FITTED = 20_000  # earlier images, at most, that the prediction is fitted to
COMPARED = 2**24  # pairs of images that are compared at once


@dataclass(frozen=True)
class Earlier:
    """An earlier run.

    Attributes
    ----------
    images
        Its training images, uint8 [m, h, h, c].
    latents
        Their latents, float32 [m, d].
    decoder
        Its decoder.
    """

    images: NDArray[np.uint8]
    latents: Tensor
    decoder: DecoderNetwork


def load_earlier(folder: str, latent_dim: int) -> Earlier:
    """Read an earlier run from its folder ``data``, or a copy of it.

    Raises
    ------
    GlannError
        If a file is missing or damaged, or latents have another size than `latent_dim`.
    """
    missing = [name for name in EARLIER_FILES if not Path(folder, name).is_file()]
    if missing:
        raise GlannError(
            f"glo.start_from: {folder}: no {missing[0]}; name the folder data of a finished run, or a copy"
        )
    images, latents, decoder = (Path(folder, name) for name in EARLIER_FILES)
    earlier = Earlier(load_npy(images, mmap=True), load_latents(latents), DecoderNetwork.load(decoder))
    if earlier.latents.shape != (len(earlier.images), latent_dim):
        raise GlannError(
            f"glo.start_from: {folder} has latents {list(earlier.latents.shape)} of {len(earlier.images)} "
            f"images, but glo.latent_dim is {latent_dim}; set it to {earlier.latents.shape[1]}"
        )
    if earlier.images.dtype != np.uint8 or earlier.images.ndim != 4:
        raise GlannError(f"glo.start_from: {images}: expected uint8 [n, h, w, c]")
    if not earlier.latents.isfinite().all() or not earlier.latents.norm(dim=1).min() > 0:
        raise GlannError(f"glo.start_from: {latents}: a latent is zero or not finite")
    return earlier


def start_from(earlier: Earlier, images: NDArray[np.uint8], decoder: DecoderNetwork) -> Tensor:
    """Return initial latents of `images`, and copy what fits from the earlier decoder into `decoder`.

    An image that was there, at whatever resolution, gets its own latent. Others get what a ridge regression
    of the earlier latents on the earlier images predicts, both reduced to 16 px: latents that start as
    principal components stay nearly linear in the pixels. Weights fit if name and shape agree: between
    resolutions, those of the common layers, if `glo.decoder.width` gives these the same number of channels.

    Parameters
    ----------
    earlier
        From `load_earlier`.
    images
        uint8 [n, h, h, c].
    decoder
        Initialised; it is changed.

    Returns
    -------
    Tensor
        float32 [n, d] with unit rows.
    """
    latents, known = _guessed(images, earlier)
    own, given = decoder.state_dict(), earlier.decoder.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    decoder.load_state_dict(own | fitting)
    if rank() == 0:
        say(
            f"glo: starts from {known:,} latents of the same images and {len(latents) - known:,} predicted "
            f"ones, and {len(fitting)} of {len(own)} tensors of the decoder"
        )
    return latents


def _guessed(images: NDArray[np.uint8], earlier: Earlier) -> tuple[Tensor, int]:
    """Return a latent for each image, float32 [n, d] with unit rows, and how many images were known."""
    if images.shape[-1] != earlier.images.shape[-1]:
        raise GlannError("glo.start_from: that run has another prepare.channels; set it to the same number")
    table = thumbnails(earlier.images, SIDE)
    given = torch.nn.functional.normalize(earlier.latents, dim=1)
    rows = np.linspace(0, len(table) - 1, min(FITTED, len(table))).astype(np.int64)
    predict = fit_latents(table[rows], given[rows])
    at_once = max(1, COMPARED // len(table))
    latents, known = [], 0
    with progress("glo: images of the earlier run", len(images), "images") as advance:
        for start in range(0, len(images), at_once):
            some = thumbnails(images[start : start + at_once], SIDE)
            nearest = torch.cdist(some, table).argmin(dim=1)
            same = (some - table[nearest]).abs().mean(dim=1) < SAME
            latents.append(torch.where(same[:, None], given[nearest], predict(some)))
            known += int(same.sum())
            advance(len(some))
    return torch.cat(latents), known
