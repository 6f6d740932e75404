"""The reconstruction losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from glann.glo.losses import Perceptual, ReconstructionLoss, l1, laplacian, reconstruction_loss
from glann.glo.settings import Loss
from glann.networks.texture import draw_directions, sliced_wasserstein
from glann.networks.vgg import LEVEL_ENDS, normalize_for_vgg, vgg16
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream


def pixels(images: torch.Tensor) -> np.ndarray:
    """Float [b, c, h, w] in [0, 1] as the images that lie on disk, uint8 [b, h, w, c]."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def compare(
    loss: ReconstructionLoss,
    decoded: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor,
    done: float,
    draws: torch.Generator | None = None,
) -> torch.Tensor:
    """The loss of a step after a fraction of the training."""
    loss.enter(done)
    return loss(decoded, targets, rows, loss.draw(draws or stream(0, "x"), done))


def compare_textures(found: torch.Tensor, wanted: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    return sliced_wasserstein(found, wanted, *draw_directions(found.shape[1], found[0, 0].numel(), draws))


def test_losses_are_zero_for_equal_images_and_positive_otherwise(random_vgg: str, cpu: Execution):
    images, others = torch.rand(2, 2, 3, 32, 32).mul(255).round() / 255
    for config in (Loss(kind="l1"), Loss(kind="laplacian"), Loss(kind="perceptual", weights=random_vgg)):
        loss = reconstruction_loss(config, cpu, pixels(images))
        assert compare(loss, images, images, torch.arange(2), 0.0).item() == pytest.approx(0, abs=1e-5)
        assert compare(loss, images, others, torch.arange(2), 0.0) > 0.01


def test_the_laplacian_loss_is_the_distance_of_the_pyramids():
    def pyramid(image: np.ndarray) -> list[np.ndarray]:
        """One channel of one image; scipy blurs, and repeats pixels at the edge as torch's "reflect" does."""
        levels = []
        while min(image.shape) >= 8:
            low = image
            for axis in (0, 1):
                low = ndimage.convolve1d(low, np.array([1, 4, 6, 4, 1]) / 16, axis=axis, mode="mirror")
            low = low[::2, ::2]
            # Bilinear enlargement: pixel i of the large image lies at (i + 1/2) / 2 - 1/2 of the small one.
            at = np.mgrid[: image.shape[0], : image.shape[1]] / 2 - 0.25
            levels.append(image - ndimage.map_coordinates(low, at, order=1, mode="nearest"))
            image = low
        return [*levels, image]

    a, b = torch.rand(2, 4, 3, 32, 32)
    pairs = zip(a.double().flatten(0, 1).numpy(), b.double().flatten(0, 1).numpy(), strict=True)
    levels = [[np.abs(x - y).mean() for x, y in zip(pyramid(p), pyramid(q), strict=True)] for p, q in pairs]
    assert laplacian(a, b).item() == pytest.approx(np.mean(levels, axis=0).sum(), rel=1e-5)


def test_the_laplacian_loss_charges_blur_more_than_l1_does():
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    noise = torch.randint(0, 2, (1, 1, 32, 32), generator=stream(0, "x")) * 0.1 - 0.05
    shift = 0.05  # both differ from the ramp by 0.05 at every pixel
    assert l1(ramp, ramp + noise).item() == pytest.approx(l1(ramp, ramp + shift).item(), rel=1e-4)
    assert laplacian(ramp, ramp + noise) > 1.2 * laplacian(ramp, ramp + shift)


def test_the_perceptual_loss_is_the_papers_sum(random_vgg: str, cpu: Execution):
    images, targets = torch.rand(2, 2, 1, 32, 32).mul(255).round() / 255
    network = vgg16(random_vgg, 3)
    expected = (images - targets).abs().mean()
    a, b = normalize_for_vgg(images), normalize_for_vgg(targets)
    for i, layer in enumerate(network):
        a, b = layer(a), layer(b)
        if i in LEVEL_ENDS:
            expected = expected + (a - b).abs().mean()
    for gib in (0, 1):  # features of the targets computed at each step, and once
        config = Loss(kind="perceptual", levels=3, weights=random_vgg, cache_gib=gib)
        loss = reconstruction_loss(config, cpu, pixels(targets.flip(0)))
        found = compare(loss, images, targets, torch.tensor([1, 0]), 0.0)
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_cropped_perceptual_loss_sees_every_part_in_time(random_vgg: str, cpu: Execution):
    config = Loss(kind="perceptual", weights=random_vgg, levels=1, crop=16, pixel_weight=0.0)
    images = torch.rand(1, 1, 32, 32).requires_grad_()
    loss = reconstruction_loss(config, cpu, pixels(images.detach()))
    draws = stream(0, "x")
    for _ in range(40):
        compare(loss, images, torch.rand(1, 1, 32, 32), torch.arange(1), 0.0, draws).backward()
    assert images.grad is not None and (images.grad != 0).all()


@pytest.mark.parametrize("texture", [0.0, 2.0])
def test_large_images_are_compared_at_two_scales(texture: float, random_vgg: str, cpu: Execution):
    config = Loss(kind="perceptual", weights=random_vgg, levels=2, pixel_weight=0.0, texture=texture)
    a, b = torch.rand(2, 1, 3, 128, 128)
    loss = reconstruction_loss(config, cpu, pixels(b))
    network, draws = vgg16(random_vgg, 2), stream(0, "x")
    expected = torch.zeros(())
    for shrink, weight in ((1, texture), (4, 0.0)):  # textures only at full size
        x, y = (normalize_for_vgg(F.avg_pool2d(image, shrink)) for image in (a, b))
        for i, layer in enumerate(network):
            x, y = layer(x), layer(y)
            if i in LEVEL_ENDS:
                share = 1 / (1 + weight) if i == LEVEL_ENDS[0] else 1
                expected = expected + share * (x - y).abs().mean()
                expected = expected + (weight * compare_textures(x, y, draws).mean() if weight else 0)
    found = compare(loss, a, b, torch.arange(1), 0.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_cached_features_are_those_of_each_image(random_vgg: str, cpu: Execution):
    targets = torch.rand(70, 1, 16, 16).mul(255).round() / 255  # more than are computed at once
    decoded, rows = torch.rand(3, 1, 16, 16), torch.tensor([66, 3, 69])
    cached, computed = (
        compare(
            reconstruction_loss(
                Loss(kind="perceptual", levels=1, weights=random_vgg, cache_gib=gib), cpu, pixels(targets)
            ),
            decoded,
            targets[rows],
            rows,
            0.0,
        )
        for gib in (1, 0)
    )
    assert cached.item() == pytest.approx(computed.item(), rel=1e-5)


def test_the_coarse_part_compares_images_of_half_the_size(random_vgg: str, cpu: Execution):
    images, targets = torch.rand(2, 3, 1, 32, 32).mul(255).round() / 255
    rows = torch.arange(3)
    config = Loss(kind="perceptual", levels=2, weights=random_vgg, pixel_weight=0.0, coarse=0.5)
    whole = reconstruction_loss(config.model_copy(update={"coarse": 0.0}), cpu, pixels(targets))
    halves = [F.avg_pool2d(x, 2) for x in (images, targets)]
    network, expected = vgg16(random_vgg, 2), torch.zeros(())
    a, b = map(normalize_for_vgg, halves)
    for i, layer in enumerate(network):
        a, b = layer(a), layer(b)
        if i in LEVEL_ENDS:
            expected = expected + (a - b).abs().mean()
    for gib in (0, 1):
        loss = reconstruction_loss(config.model_copy(update={"cache_gib": gib}), cpu, pixels(targets))
        first, second = (compare(loss, images, targets, rows, done).item() for done in (0.49, 0.5))
        assert first == pytest.approx(expected.item(), rel=1e-4)
        assert second == pytest.approx(compare(whole, images, targets, rows, 0.5).item(), rel=1e-4)


@pytest.mark.parametrize(("size", "levels"), [(16, 4), (28, 4), (32, 5)])
def test_the_coarse_part_has_all_levels_that_half_the_size_allows(
    size: int, levels: int, random_vgg: str, cpu: Execution
):
    images, targets = torch.rand(2, 2, 1, size, size)
    config = Loss(kind="perceptual", levels=5, weights=random_vgg, coarse=0.9)
    loss = Perceptual(config, cpu, pixels(targets))
    assert loss.coarse is not None and loss.coarse.levels == levels
    assert compare(loss, images, targets, torch.arange(2), 0.8).isfinite()


def test_the_features_of_the_coarse_part_are_dropped_when_it_is_over(random_vgg: str, cpu: Execution):
    images, targets = torch.rand(2, 2, 1, 32, 32)
    loss = Perceptual(Loss(kind="perceptual", levels=1, weights=random_vgg, coarse=0.5), cpu, pixels(targets))
    for done, there in ((0.0, True), (0.49, True), (0.5, False)):
        compare(loss, images, targets, torch.arange(2), done)
        assert (loss.coarse is not None) == there


def test_the_cache_holds_the_whole_images_first(
    random_vgg: str, cpu: Execution, capsys: pytest.CaptureFixture[str]
):
    images = pixels(torch.rand(4, 1, 32, 32))
    one_level = 4 * 64 * 32 * 32 * 4 / 2**30  # of four images in float32
    for room, kept in (
        (1.3, (True, True)),
        (1.2, (True, False)),
        (0.9, (False, True)),
        (0.2, (False, False)),
    ):
        config = Loss(kind="perceptual", levels=1, weights=random_vgg, coarse=0.5, cache_gib=room * one_level)
        loss = Perceptual(config, cpu, images)
        assert (loss.fine.kept is not None, loss.coarse.kept is not None) == kept
        said = [line for line in capsys.readouterr().err.splitlines() if "glo.loss.cache_gib" in line]
        assert ["half their size" in line for line in said] == [
            half for half in (False, True) if not kept[half]
        ]


def test_textures_are_compared_wherever_they_lie():
    draws = torch.Generator().manual_seed(0)
    texture = torch.randn(1, 8, 16, 16, generator=draws)
    elsewhere = texture.flatten(2)[..., torch.randperm(256, generator=draws)].reshape(texture.shape)
    blurred = F.avg_pool2d(texture, 3, stride=1, padding=1)
    assert compare_textures(texture, elsewhere, draws).max() < 1e-5
    assert compare_textures(texture, blurred, draws).min() > 0.3
    # Along any direction, two features that differ by a constant vector differ by its component.
    moved = texture + torch.full((8, 1, 1), 0.5)
    found = torch.stack([compare_textures(texture, moved, draws) for _ in range(200)]).mean()
    components = F.normalize(torch.randn(100_000, 8, generator=draws), dim=1).sum(dim=1) * 0.5
    assert found.item() == pytest.approx(components.abs().mean().item(), rel=0.05)


def test_large_maps_are_compared_at_some_positions_without_a_bias():
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 4, 64, 64, generator=draws) * torch.tensor([1.0, 2.0])[:, None, None, None, None]
    found = torch.stack([compare_textures(a, b, draws) for _ in range(30)]).mean()
    expected = torch.tensor(2 / np.pi).sqrt()  # E |x - 2 x| of a normal x
    assert found.item() == pytest.approx(expected.item(), rel=0.05)


def test_the_texture_counts_after_the_coarse_part_only(random_vgg: str, cpu: Execution):
    images, targets = torch.rand(2, 1, 1, 32, 32).mul(255).round() / 255
    plain, textured = (
        reconstruction_loss(
            Loss(kind="perceptual", levels=2, weights=random_vgg, coarse=0.5, texture=texture),
            cpu,
            pixels(targets),
        )
        for texture in (0.0, 2.0)
    )

    def both(done: float) -> list[float]:
        return [compare(loss, images, targets, torch.arange(1), done).item() for loss in (plain, textured)]

    first, second = both(0.2), both(0.8)
    assert first[0] == first[1] and second[0] != second[1]
    whole = Loss(kind="perceptual", levels=2, weights=random_vgg, texture=2.0)
    loss = reconstruction_loss(whole, cpu, pixels(targets))
    expected = compare(loss, images, targets, torch.arange(1), 0.8).item()
    assert second[1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shares", [[1], [1 / 4, 1], [1 / 4, 1 / 4, 1], [1 / 4, 1 / 4, 1, 1]])
@pytest.mark.parametrize("gib", [0, 1])
def test_textures_take_weight_from_the_levels_that_see_details(
    shares: list[float], gib: int, random_vgg: str, cpu: Execution
):
    images, targets = torch.rand(2, 1, 1, 32, 32).mul(255).round() / 255
    levels = len(shares)
    config = Loss(kind="perceptual", levels=levels, weights=random_vgg, texture=3.0, cache_gib=gib)
    a, b = normalize_for_vgg(images), normalize_for_vgg(targets)
    draws, expected = stream(0, "x"), (images - targets).abs().mean()
    for i, layer in enumerate(vgg16(random_vgg, levels)):
        a, b = layer(a), layer(b)
        if i in LEVEL_ENDS:
            share = shares[LEVEL_ENDS.index(i)]
            expected = expected + share * (a - b).abs().mean() + 3 * compare_textures(a, b, draws).mean()
    loss = reconstruction_loss(config, cpu, pixels(targets))
    found = compare(loss, images, targets, torch.arange(1), 0.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
