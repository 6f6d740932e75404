"""What the evaluate stage says of a model's weak sides."""

import numpy as np
import torch

from glann.evaluate.diagnosis import farthest, nearest_images, quantiles


def test_the_farthest_come_first_each_with_its_nearest():
    images = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    samples = torch.tensor([[0.1, 0.0], [4.0, 3.0], [2.0, 0.0]])
    rows, near = farthest(samples, images, 5)
    assert rows.tolist() == [1, 2, 0] and near.tolist()[0] == 1


def test_copies_are_nearer_to_the_training_images_than_new_images():
    draws = torch.Generator().manual_seed(0)
    images, new = torch.randn(2, 300, 8, generator=draws)
    points = quantiles({"copies": images[:50], "holdout": new}, images)
    assert [point["percent"] for point in points] == [*range(101)]
    assert all(point["copies"] < 1e-3 for point in points)
    # 8-dimensional normal draws, computed independently.
    expected = torch.cdist(new, images).min(dim=1).values.median().item()
    assert abs(points[50]["holdout"] - expected) < 0.02 * expected


def test_copies_show_beside_the_image_they_copy():
    draws = np.random.default_rng(0)
    images = draws.integers(0, 200, (300, 16, 16, 1), dtype=np.uint8)
    pool = np.sort(draws.permutation(300)[:250])
    copied = images[pool[::5]]
    copies = copied + draws.integers(0, 20, copied.shape, dtype=np.uint8)
    sizes = []

    def network(batch):
        sizes.append(len(batch))
        return torch.from_numpy(batch.reshape(len(batch), -1)).float()

    assert (nearest_images(network, copies, images, pool) == copied).all()
    assert max(sizes) <= 64  # of 250 candidates
    outside = np.setdiff1d(np.arange(300), pool)
    found = nearest_images(network, images[outside[:5]], images, pool)
    assert all((image == images[pool]).all(axis=(1, 2, 3)).any() for image in found)
