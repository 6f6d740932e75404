"""Images as tensors."""

import numpy as np
import torch

from glann.images.tensors import THUMBNAILS_AT_ONCE, thumbnails


def test_thumbnails_of_many_images_are_those_of_each():
    images = np.random.default_rng(0).integers(0, 256, (THUMBNAILS_AT_ONCE + 9, 8, 8, 3), np.uint8)
    found = thumbnails(images, 4)
    assert found.shape == (len(images), 3 * 4 * 4)
    for i in (0, THUMBNAILS_AT_ONCE - 1, THUMBNAILS_AT_ONCE, len(images) - 1):
        squares = images[i].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
        assert torch.allclose(found[i], torch.from_numpy(squares).float().flatten(), atol=1e-6)
    assert torch.equal(thumbnails(images, 4, np.array([260, 3])), found[[260, 3]])
