"""How sharp images are, whatever they show."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

AT_ONCE = 64  # images


def laplacian_variance(images: NDArray[np.uint8]) -> Tensor:
    """Return the variance of each image's Laplacian, the usual measure of focus (Pech-Pacheco et al., 2000).

    Parameters
    ----------
    images
        uint8 [n, h, w, c], 3 px or more; the mean over channels is measured.

    Returns
    -------
    Tensor
        float32 [n], in squared grey levels. It grows with contrast and with noise, as well as with sharpness.
    """
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    variances = []
    for start in range(0, len(images), AT_ONCE):
        grey = torch.tensor(np.asarray(images[start : start + AT_ONCE])).float().mean(dim=3)[:, None]
        variances.append(F.conv2d(grey, kernel).var(dim=(1, 2, 3), correction=0))
    return torch.cat(variances)


def relative_sharpness(variances: Tensor, reference: Tensor) -> float:
    """Return the ratio of the medians of two sets of `laplacian_variance`: 1 if they are equally sharp.

    If the reference has no edges, 0.
    """
    typical = float(reference.median())
    return float(variances.median()) / typical if typical else 0.0
