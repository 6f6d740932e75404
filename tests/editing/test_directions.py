"""Directions in latent space."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import small_generator

from glann.editing.directions import (
    Direction,
    labelled,
    learned,
    load_directions,
    move,
    principal,
    save_directions,
    sensitive,
    strips,
    told_apart,
)
from glann.errors import GlannError
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.sample.generator import Generator


@pytest.fixture
def generator(cpu: Execution) -> Generator:
    return small_generator(cpu)


def spread(scales: list[float], n: int = 2000) -> torch.Tensor:
    return torch.randn(n, len(scales), generator=stream(0, "spread")) * torch.tensor(scales)


def test_principal_directions_come_in_the_order_of_their_spread():
    found = principal(spread([1.0, 3.0, 0.5]), 2)
    assert [way.name for way in found] == ["principal 1", "principal 2"]
    assert abs(found[0].vector[1]) > 0.99 and abs(found[1].vector[0]) > 0.99
    assert found[0].spread == pytest.approx(3.0, rel=0.05) and found[1].spread == pytest.approx(1.0, rel=0.05)


def test_sensitive_directions_are_those_that_change_the_picture(generator: Generator):
    with torch.no_grad():  # the decoder ignores all numbers of a latent but the first two
        for weight in generator.decoder.parameters():
            if weight.ndim == 2 and weight.shape[1] == 8:
                weight[:, 2:] = 0
    latents = F.normalize(spread([1.0] * 8), dim=1)
    found = sensitive(generator, latents, 8)
    assert all(way.vector[:2].norm() > 0.95 for way in found[:2])
    assert all(way.vector[:2].norm() < 0.3 for way in found[2:])
    assert all(way.vector.norm() == pytest.approx(1, abs=1e-5) for way in found)


def test_a_direction_is_learned_from_examples():
    latents = F.normalize(spread([1.0] * 6), dim=1)
    has = latents[:, 3] > 0.2
    way = learned("up", latents[has], latents[~has], latents)
    assert way.name == "up" and way.vector[3] > 0.95
    assert way.spread == pytest.approx(float(latents[:, 3].std()), rel=0.1)
    with pytest.raises(GlannError, match="up: needs 5 or more examples of both kinds, found 0 and"):
        learned("up", latents[:0], latents, latents)
    with pytest.raises(GlannError, match="up: the examples of both kinds are the same"):
        learned("up", latents, latents, latents)


def test_it_is_measured_how_well_examples_are_told_apart():
    latents = spread([1.0] * 6, 200)
    assert told_apart(latents[latents[:, 3] > 0.5], latents[latents[:, 3] < -0.5]) > 0.9
    assert 0.3 < told_apart(latents[:60], latents[60:]) < 0.7  # nothing tells them apart


def test_strips_are_laid_out_with_their_names_and_strengths():
    images = np.random.default_rng(0).integers(0, 200, (2, 3, 5, 16, 16, 1), np.uint8)
    picture = labelled(images, ["a", "direction", "b"], [-2, -1, 0, 1, 2])
    assert picture.shape[2] == 1 and picture.shape[0] == 2 * (3 * 18 + 2 + 24)
    left = picture.shape[1] - (5 * 18 + 2)
    top = 24 + (3 * 18 + 2 + 24) + 2 + 18  # the second image, its second direction
    assert np.array_equal(picture[top : top + 16, left + 2 + 36 : left + 2 + 52], images[1, 1, 2])
    assert (picture[24:80, :left] < 128).any() and (picture[:22, left:] < 128).any()  # something is written


def test_moving_keeps_to_the_sphere_and_adds_up():
    latents = F.normalize(spread([1.0] * 4, 10), dim=1)
    ways = [Direction("a", torch.eye(4)[0], 0.5), Direction("b", torch.eye(4)[1], 0.25)]
    assert torch.allclose(move(latents, ways, [0, 0]), latents)
    moved = move(3 * latents, ways, [2, -4])
    wanted = F.normalize(latents + torch.tensor([1.0, -1.0, 0, 0]), dim=1)
    assert torch.allclose(moved, wanted, atol=1e-6)


def test_a_strip_shows_each_direction_at_each_strength(generator: Generator):
    ways = principal(generator.sample_latents(64), 2)
    latents = generator.sample_latents(2)
    images = strips(generator, latents, ways, [-1.0, 0.0, 1.0])
    assert images.shape == (2, 2, 3, 16, 16, 3)
    for i in (0, 1):
        assert np.array_equal(images[i, 0, 1], images[i, 1, 1])
        assert np.array_equal(images[i, 0, 1], generator.decode(latents[i : i + 1])[0])
        assert np.array_equal(images[i, 1, 2], generator.decode(move(latents[i : i + 1], ways[1:], [1.0]))[0])


def test_directions_come_back_from_their_file_but_only_for_their_model(
    generator: Generator, cpu: Execution, tmp_path: Path
):
    ways = principal(generator.sample_latents(64), 3)
    save_directions(tmp_path / "d.safetensors", ways, generator)
    again = load_directions(tmp_path / "d.safetensors", generator)
    assert [way.name for way in again] == [way.name for way in ways]
    assert torch.equal(again[2].vector, ways[2].vector) and again[1].spread == pytest.approx(ways[1].spread)
    other = small_generator(cpu)
    with torch.no_grad():
        other.decoder.network.to_image.weight *= 2
    with pytest.raises(GlannError, match=r"d\.safetensors: directions of another model"):
        load_directions(tmp_path / "d.safetensors", other)
    generator.save(tmp_path / "g.safetensors")
    with pytest.raises(GlannError, match=r"g\.safetensors: holds no directions"):
        load_directions(tmp_path / "g.safetensors", generator)
