"""Sharpness: the variance of the Laplacian, which blur lowers."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, laplace

from glann.evaluate.sharpness import AT_ONCE, laplacian_variance, relative_sharpness


def textures(count: int, sigma: float = 0.0) -> np.ndarray:
    """Return noise, uint8 [count, 16, 16, 3], blurred by a Gaussian of `sigma` pixels."""
    noise = np.random.default_rng(0).normal(128, 40, (count, 16, 16, 3))
    return gaussian_filter(noise, (0, sigma, sigma, 0)).clip(0, 255).astype(np.uint8)


def test_the_variance_is_scipys():
    images = textures(AT_ONCE + 3)
    inner = [laplace(image.mean(axis=2))[1:-1, 1:-1].var() for image in images.astype(float)]
    torch.testing.assert_close(laplacian_variance(images), torch.tensor(inner).float(), rtol=1e-4, atol=0)


def test_blurred_images_are_less_sharp_and_equal_ones_equally():
    sharp = laplacian_variance(textures(20))
    ratios = [relative_sharpness(laplacian_variance(textures(20, sigma)), sharp) for sigma in (0, 0.5, 1)]
    assert ratios[0] == 1
    assert ratios[0] > 2 * ratios[1] > 4 * ratios[2] > 0


@pytest.mark.parametrize("grey", [0, 255])
def test_images_without_edges_have_a_sharpness_too(grey: int):
    flat = laplacian_variance(np.full((2, 16, 16, 1), grey, np.uint8))
    assert relative_sharpness(flat, flat) == 0
