"""Latents: where they start, how they step, and the noise on them."""

import numpy as np
import torch
from torch import nn

from glann.glo.latents import LatentNoise, LatentTable, initial_latents
from glann.glo.settings import Glo
from glann.training.shards import Shard


def test_the_latent_table_steps_each_row_as_an_adam_of_its_own_would():
    start = nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    gradients = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    visits = [torch.tensor([0, 1, 2]), torch.tensor([2, 3]), torch.tensor([2, 0])]
    table = LatentTable(start.clone(), Shard(6, 3))
    for rows, gradient in zip(visits, gradients, strict=True):
        latents = table.rows(rows)
        (latents * gradient[rows]).sum().div(len(rows)).backward()  # a mean over the batch, as the loss is
        table.step(rows, latents, lr=0.1, scale=len(rows))
    for row in range(6):
        expected = start[row].clone().requires_grad_()
        optimizer = torch.optim.Adam([expected], lr=0.1, betas=(0.5, 0.999))
        for rows, gradient in zip(visits, gradients, strict=True):
            if row in rows:
                expected.grad = gradient[row]
                optimizer.step()
                with torch.no_grad():
                    expected /= expected.norm()
        assert torch.allclose(table.latents[row], expected.detach(), atol=1e-6)


def test_pca_puts_like_images_near_each_other(shapes: np.ndarray):
    pairs = np.concatenate([shapes, np.clip(shapes.astype(int) + 3, 0, 255).astype(np.uint8)])
    latents = initial_latents(pairs, Glo(latent_dim=8), 0, 0, 96)
    assert torch.allclose(latents.norm(dim=1), torch.ones(96), atol=1e-5)
    nearest = torch.cdist(latents, latents).fill_diagonal_(9).argmin(dim=1)
    assert (nearest == (torch.arange(96) + 48) % 96).float().mean() > 0.95


def test_more_latent_dimensions_than_images_are_filled_with_noise(shapes: np.ndarray):
    latents = initial_latents(shapes[:4], Glo(latent_dim=64), 0, 0, 4)
    assert latents.shape == (4, 64) and latents.isfinite().all() and (latents != 0).all()


def test_unwhitened_components_keep_the_weight_that_they_have_in_the_images(shapes: np.ndarray):
    plain, white = (
        initial_latents(shapes, Glo(latent_dim=8, latent_init=init), 0, 0, 48)
        for init in ("pca", "pca_whitened")
    )
    spread, even = plain.square().mean(dim=0), white.square().mean(dim=0)
    assert spread[0] > 3 * spread[7]
    assert even.max() < 2 * even.min()


def test_images_that_do_not_differ_get_latents_of_length_1():
    images = np.full((20, 16, 16, 3), 7, np.uint8)
    latents = initial_latents(images, Glo(latent_dim=8), 0, 0, 20)
    assert torch.allclose(latents.norm(dim=1), torch.ones(20), atol=1e-5)


def test_noise_has_its_length_follows_the_latents_and_is_the_same_for_any_number_of_ranks():
    draws = torch.Generator().manual_seed(0)
    first = nn.functional.normalize(
        torch.randn(600, 5, generator=draws) * torch.tensor([4, 2, 1, 1, 0]), dim=1
    )
    whole = Shard(600, 200)
    perturb = LatentNoise(0.5, first, whole, 0)
    rows, _ = next(whole.batches(0, "order"))
    noisy = perturb(first[rows], perturb.draw(rows, 7))
    assert torch.allclose(noisy.norm(dim=1), torch.ones(200), atol=1e-5)
    assert not torch.equal(noisy, perturb(first[rows], perturb.draw(rows, 8)))
    added = noisy / (noisy * first[rows]).sum(dim=1, keepdim=True) - first[rows]  # across the latent
    lengths = added.square().sum(dim=1).sqrt()  # uniform between 0 and 0.5, times a normal draw's length
    assert 0.2 < lengths.square().mean().sqrt() < 0.35
    assert (lengths < 0.05).sum() > 8 and (lengths > 0.35).sum() > 20
    assert added[:, 4].abs().max() < 1e-6 and added[:, 0].std() > 1.15 * added[:, 2].std()
    assert torch.equal(LatentNoise(0, first, whole, 0)(first[rows], {}), first[rows])
    parts = []
    for rank in range(2):
        half = Shard(600, 200, rank, 2)
        of_rank = LatentNoise(0.5, first, whole, 0)  # the spread is that of all ranks' latents
        of_rank.shard = half
        own, _ = next(half.batches(0, "order"))
        parts.append(of_rank(first[own + half.start], of_rank.draw(own, 7)))
    assert torch.equal(torch.cat(parts), noisy)


def test_the_first_latents_do_not_depend_on_the_number_of_cores(shapes: np.ndarray):
    from threadpoolctl import threadpool_limits

    found = []
    for cores in (1, 2):
        with threadpool_limits(cores):
            found.append(initial_latents(shapes, Glo(latent_dim=8), 0, 0, 48))
    assert torch.equal(*found)


def test_random_latents_do_not_depend_on_the_images(shapes: np.ndarray):
    config = Glo(latent_dim=8, latent_init="random")
    latents = initial_latents(shapes, config, 0, 0, 48)
    assert torch.equal(latents, initial_latents(255 - shapes[::-1], config, 0, 0, 48))
    assert not torch.equal(latents, initial_latents(shapes, config, 1, 0, 48))
