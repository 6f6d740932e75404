"""Drawing with a conditional generator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import small_generator

import glann
from glann.errors import GlannError
from glann.runtime.compute import Execution
from glann.runtime.randomness import noise_rows
from glann.runtime.settings import Compute
from glann.runtime.tensors import load_tensors, save_tensors
from glann.sample.animation import walk
from glann.sample.generator import Generator
from glann.sample.saving import draw_samples
from glann.sample.settings import Sample

CLASSES = {"cat": 600, "dog": 300, "$rare$ & <odd>": 100}


@pytest.fixture
def generator(cpu: Execution) -> Generator:
    return small_generator(cpu, classes=CLASSES)


def test_the_class_decides_what_is_drawn_and_the_noise_which_of_it(generator: Generator):
    assert generator.classes == [*CLASSES]
    cats, dogs = (generator.sample(70, seed=7, class_name=name) for name in ("cat", "dog"))
    assert (cats != dogs).any(axis=(1, 2, 3)).all()
    assert np.array_equal(generator.sample(3, seed=7, class_name="cat"), cats[:3])
    latents = generator.mapping(noise_rows(0, 70, 4, 7, "sample"), torch.full((70,), 1))
    assert torch.allclose(generator.sample_latents(70, seed=7, class_name="dog"), latents, atol=1e-5)


def test_without_a_class_they_are_drawn_as_often_as_in_the_training(generator: Generator):
    labels = generator.labels(4000, seed=3)
    assert labels is not None
    shares = labels.bincount(minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03)  # 4 standard deviations
    assert torch.equal(generator.labels(10, seed=3), labels[:10])
    images = generator.sample(10, seed=3)
    for i, name in enumerate(CLASSES):
        own = generator.sample(10, seed=3, class_name=name)
        same = [np.abs(images[k].astype(int) - own[k]).max() <= 1 for k in range(10)]
        assert same == (labels[:10] == i).tolist()


def test_a_way_leads_smoothly_from_one_class_to_another(generator: Generator):
    samples, labels = generator.sample(20, seed=1), generator.labels(20, seed=1)
    assert labels is not None and (labels[0::2] != labels[1::2]).any()
    strips = generator.interpolate(10, 9, seed=1)
    assert np.abs(strips[:, 0].astype(int) - samples[0::2]).max() <= 1
    assert np.abs(strips[:, -1].astype(int) - samples[1::2]).max() <= 1
    leaps = [
        np.abs(np.diff(generator.interpolate(10, steps, 1).astype(float), axis=1)).max() for steps in (17, 65)
    ]
    assert leaps[1] < 0.5 * leaps[0]
    cats = walk(generator, [1, 5], steps=3, class_name="cat")
    assert np.abs(cats[0].astype(int) - generator.sample(1, seed=1, class_name="cat")[0]).max() <= 1


def test_a_class_that_is_not_there_is_one_line(generator: Generator, cpu: Execution):
    with pytest.raises(GlannError, match=r"class: no class 'bird'; there are: 'cat', 'dog', '\$rare"):
        generator.sample(1, class_name="bird")
    with pytest.raises(GlannError, match=r"class: expected a name, found 7"):
        generator.sample(1, class_name=7)
    with pytest.raises(GlannError, match=r"class: this model has none; fit it with imle\.conditional"):
        small_generator(cpu).sample(1, class_name="cat")
    for labels in (None, torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0]), torch.ones(2)):
        with pytest.raises(GlannError, match=r"labels: expected int64 \[2\], each below 3"):
            generator.map(torch.randn(2, 4), labels=labels)
    with pytest.raises(GlannError, match=r"labels: expected int64 \[2\]"):
        generator.between(torch.randn(2, 4), torch.randn(2, 4), 3)
    with pytest.raises(GlannError, match="labels: expected none"):
        small_generator(cpu).map(torch.randn(2, 4), labels=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_counts": [1, 1]},
        {"class_counts": [1, 0, 1]},
        {"class_counts": [1, 10**400, 1]},
        {"classes": ["a", "a", "b"]},
        {"classes": ["", "a", "b"]},
        {"classes": ["a\nb", "a", "b"]},
    ],
    ids=str,
)
def test_a_damaged_list_of_classes_is_one_line(wrong: dict, generator: Generator, tmp_path: Path):
    generator.save(tmp_path / "g.safetensors")
    tensors, config = load_tensors(tmp_path / "g.safetensors")
    config["mapping"] |= wrong
    save_tensors(tmp_path / "g.safetensors", tensors, config)
    with pytest.raises(GlannError, match=r"g\.safetensors: "):
        Generator.load(tmp_path / "g.safetensors")


def test_it_comes_back_from_its_file(generator: Generator, tmp_path: Path):
    generator.save(tmp_path / "g.safetensors")
    again = glann.Generator.load(tmp_path / "g.safetensors", Compute(device="cpu", precision="float32"))
    assert again.classes == generator.classes
    assert np.array_equal(again.sample(9), generator.sample(9))


@pytest.mark.parametrize(("count", "rows", "each"), [(8, 3, 2), (2, 2, 1)])
def test_the_grid_has_a_row_per_class(count: int, rows: int, each: int, generator: Generator, tmp_path: Path):
    draw_samples(generator, Sample(count=count, interpolations=1, interpolation_steps=2), tmp_path)
    names = [*CLASSES][:rows]
    expected = np.concatenate([generator.sample(each, class_name=name) for name in names])
    files = sorted((tmp_path / "images").iterdir())
    found = np.stack([np.asarray(Image.open(path)) for path in files])
    assert np.abs(found.astype(int) - expected).max() <= 1
    width, height = Image.open(tmp_path / "grid.png").size
    assert width > 100 and height > 60 * rows  # with the names of classes before the rows
