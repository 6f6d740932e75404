"""Latents for pictures that a model has never seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import small_generator

from glann.errors import GlannError
from glann.glo.losses import reconstruction_loss
from glann.glo.settings import Loss
from glann.images.tensors import to_float, to_uint8
from glann.networks.decoders.settings import Origin
from glann.projection.distance import Distance
from glann.projection.projector import Known, Projector
from glann.runtime.compute import Execution
from glann.runtime.randomness import noise_rows, stream
from glann.sample.generator import Generator


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def generator(cpu: Execution) -> Generator:
    """A model whose decoder draws with more contrast than one with initial weights."""
    made = small_generator(cpu)
    with torch.no_grad():
        made.decoder.network.to_image.weight *= 30
    return made


def known_of(generator: Generator) -> Known:
    latents = F.normalize(noise_rows(0, 300, 8, 0, "known"), dim=1)
    images = generator.decode(latents)
    return Known(images[:200], latents[:200], images[200:])


def test_pictures_that_the_model_can_draw_are_found(generator: Generator):
    known = known_of(generator)
    projector = Projector(generator, known)
    found = projector.project(known.holdout[70:90])
    apart = np.abs(found.images.astype(int) - known.holdout[70:90]).mean(axis=(1, 2, 3))
    others = np.abs(known.holdout[70:90].astype(int) - known.holdout[50:70]).mean()
    assert np.median(apart) < 0.1 * others
    assert torch.allclose(found.latents.norm(dim=1), torch.ones(20), atol=1e-5)
    assert np.array_equal(generator.decode(found.latents), found.images)
    assert found.nearer is not None and np.median(found.nearer) < 0.9


def test_a_picture_foreign_to_the_model_is_said_to_be_one(generator: Generator):
    known = known_of(generator)
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    found = Projector(generator, known).project(np.concatenate([noise, known.holdout[70:80]]))
    assert found.foreign[:2] == [True, True] and sum(found.foreign[2:]) <= 1
    assert found.distances[:2].min() > 2 * np.median(found.distances[2:])


@pytest.mark.parametrize("kind", ["l1", "laplacian", "perceptual"])
def test_the_distance_is_the_loss_of_the_training_for_each_image(kind: str, cpu: Execution, random_vgg: str):
    a, b = torch.rand(2, 3, 3, 32, 32, generator=stream(0, "images"))
    config = Loss(kind=kind, levels=3, pixel_weight=10.0, weights=random_vgg)
    loss = reconstruction_loss(config, cpu, to_uint8(b))
    origin = Origin(loss=kind, levels=3, pixel_weight=10.0)
    distance = Distance(origin, random_vgg, cpu)
    b = to_float(torch.from_numpy(to_uint8(b)))
    found = distance.between(distance.describe(a), distance.describe(b))
    for i in range(3):
        expected = loss(a[i : i + 1], b[i : i + 1], torch.tensor([i]), {})
        assert found[i] == pytest.approx(float(expected), rel=1e-4)


def test_textures_count_as_in_the_training(cpu: Execution, random_vgg: str):
    a, b = torch.rand(2, 2, 3, 32, 32, generator=stream(0, "images"))
    plain, textured = (
        Distance(Origin(loss="perceptual", levels=3, texture=weight), random_vgg, cpu) for weight in (0, 2)
    )
    described = textured.describe(a), textured.describe(b)
    found = textured.between(*described)
    again = textured.between(*described)
    assert torch.equal(found, again) and not torch.allclose(found, plain.between(*described))
    halved = plain.describe(a, halve=True), plain.describe(b, halve=True)
    assert torch.equal(textured.between(*halved, halved=True), plain.between(*halved, halved=True))
    config = Loss(kind="perceptual", levels=3, texture=2.0, weights=random_vgg)
    loss = reconstruction_loss(config, cpu, to_uint8(b))
    b = to_float(torch.from_numpy(to_uint8(b)))
    found = textured.between(textured.describe(a), textured.describe(b)).mean()
    expected = [float(loss(a, b, torch.arange(2), loss.draw(stream(i, "draws"), 0.0))) for i in range(50)]
    assert found == pytest.approx(np.mean(expected), rel=0.05)  # over the random directions


def test_a_picture_does_not_depend_on_those_beside_it(generator: Generator):
    known = known_of(generator)
    projector = Projector(generator, known)
    together, alone = projector.project(known.holdout[60:100]), projector.project(known.holdout[97:98])
    assert np.abs(together.images[37].astype(int) - alone.images[0]).mean() < 2


def test_hold_out_images_are_measured_once(
    generator: Generator, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    known = known_of(generator)
    first = Projector(generator, known).reference
    assert len(first) == 64 and (np.diff(first) >= 0).all() and len([*cache.rglob("*.safetensors")]) == 1
    monkeypatch.setattr(Projector, "_found", lambda *_: pytest.fail("measured again"))
    assert np.array_equal(Projector(generator, known).reference, first)
    file = next(cache.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])  # damaged: it is measured again
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert np.array_equal(Projector(generator, known).reference, first)


def test_a_cache_that_cannot_be_written_is_done_without(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(Projector(generator, known_of(generator)).reference) == 64


def test_what_does_not_fit_is_refused(generator: Generator):
    known = known_of(generator)
    with pytest.raises(
        GlannError, match=r"known: images \[16, 16, 3\] and .* latents \[200, 7\] do not belong"
    ):
        Projector(generator, Known(known.images, known.latents[:, :7], known.holdout))
    projector = Projector(generator)
    for images in (known.images[:, :8], known.images[:0], known.images.astype(float)):
        with pytest.raises(GlannError, match=r"images: expected uint8 \['n', 16, 16, 3\], found"):
            projector.project(images)
