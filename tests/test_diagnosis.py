"""What the evaluate stage says of a model's weak sides."""

import torch

from glann.diagnosis import missed, quantiles, strangest


def test_the_latents_farthest_from_all_samples_are_missed():
    latents = torch.eye(4)
    drawn = 3 * torch.stack([latents[0], latents[1] + 0.1 * latents[2], latents[3] + 0.5 * latents[0]])
    rows, near = missed(latents, drawn, 2)
    assert rows.tolist() == [2, 3]  # only a tenth of row 2 is in any sample; half of a sample is not row 3
    assert near.tolist() == [1, 2]


def test_the_samples_farthest_from_all_images_are_strange():
    images = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    samples = torch.tensor([[0.1, 0.0], [4.0, 3.0], [2.0, 0.0]])
    rows, near = strangest(samples, images, 5)
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
