"""Latents predicted from images by ridge regression (Hoerl & Kennard, 1970)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 16  # px to which images are reduced
SHRUNK = 0.1  # strength of the regression, as a fraction of the mean variance of the pixels
SMALLEST = 1e-6  # strength if all images are equal


def fit_latents(small: Tensor, latents: Tensor) -> Callable[[Tensor], Tensor]:
    """Return ``predict(small)``, a linear function from reduced images to latents.

    Latents that start as principal components stay nearly linear in the pixels.

    Parameters
    ----------
    small
        float32 [n, f] from ``thumbnails(images, SIDE)``.
    latents
        float32 [n, d], of unit length: row i belongs to image i.

    Returns
    -------
    Callable
        Takes float32 [b, f], and returns float32 [b, d] of unit length.
    """
    small = small.double()
    pixels, target = small.mean(dim=0), latents.double().mean(dim=0)
    centred = small - pixels
    squares = centred.T @ centred
    strength = SHRUNK * squares.diagonal().mean() + SMALLEST
    shrunk = squares + strength * torch.eye(len(squares), dtype=torch.float64)
    weights = torch.linalg.solve(shrunk, centred.T @ (latents.double() - target))

    def predict(some: Tensor) -> Tensor:
        return F.normalize((some.double() - pixels) @ weights + target, dim=1).float()

    return predict
