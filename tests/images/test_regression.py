"""Predicting latents from images."""

import numpy as np
import torch
import torch.nn.functional as F

from glann.images.regression import SIDE, fit_latents
from glann.images.tensors import thumbnails
from glann.runtime.randomness import stream


def test_latents_that_are_linear_in_the_pixels_are_found():
    images = np.random.default_rng(0).integers(0, 256, (400, SIDE, SIDE, 1), np.uint8)
    small = thumbnails(images, SIDE)
    weights = torch.randn(small.shape[1], 4, generator=stream(0, "weights"))
    latents = F.normalize((small - small.mean(dim=0)) @ weights, dim=1)
    predicted = fit_latents(small[:300], latents[:300])(small[300:])
    assert torch.allclose(predicted.norm(dim=1), torch.ones(100))
    assert (predicted * latents[300:]).sum(dim=1).mean() > 0.8


def test_equal_images_and_few_of_them_are_no_trouble():
    small = thumbnails(np.full((3, 8, 8, 3), 7, np.uint8), SIDE)
    assert fit_latents(small, torch.eye(3))(small).isfinite().all()
