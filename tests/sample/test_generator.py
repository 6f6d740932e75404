import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small import small_generator

import glann
from glann.errors import GlannError
from glann.images.png import grid
from glann.imle.calibration import borrowed_residuals, fit_range
from glann.networks.mappings.network import MappingNetwork
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.tensors import load_tensors, save_tensors
from glann.sample.generator import Generator, slerp
from glann.sample.saving import draw_samples, save_images
from glann.sample.settings import Sample


@pytest.fixture
def generator(cpu: Execution) -> Generator:
    return small_generator(cpu)


def test_equal_seeds_give_equal_pictures_and_the_first_of_more_are_the_same(generator: Generator):
    many = generator.sample(150, seed=7)
    assert many.shape == (150, 16, 16, 3) and many.dtype == np.uint8
    for count in (1, 2, 63, 64, 65):
        assert np.array_equal(generator.sample(count, seed=7), many[:count])
    assert not np.array_equal(generator.sample(1, seed=8), many[:1])
    assert len(np.unique(many.reshape(150, -1), axis=0)) == 150


@pytest.mark.parametrize("residuals", [0, 20])
def test_a_generator_comes_back_from_its_file(generator: Generator, residuals: int, tmp_path: Path):
    if residuals:
        pairs = torch.randn(2, residuals, 8, generator=stream(0, "pairs"))
        generator.mapping.set_residuals(*borrowed_residuals(*pairs, 1.0, stream(0, "draws")))
    generator.save(tmp_path / "generator.safetensors")
    again = glann.Generator.load(
        tmp_path / "generator.safetensors", Compute(device="cpu", precision="float32")
    )
    assert np.array_equal(again.sample(3), generator.sample(3))


def test_loading_does_not_import_a_compiler(generator: Generator, tmp_path: Path):
    generator.save(tmp_path / "g.safetensors")
    code = "import sys, glann; glann.Generator.load(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "g.safetensors"], check=True, capture_output=True, text=True
    )
    assert said.stdout.strip() == "False"  # it takes two seconds


def test_a_file_that_is_no_generator_is_one_line(generator: Generator, tmp_path: Path):
    generator.decoder.save(tmp_path / "decoder.safetensors")
    with pytest.raises(GlannError, match=r"decoder\.safetensors: does not hold what is expected"):
        Generator.load(tmp_path / "decoder.safetensors")
    with pytest.raises(GlannError, match="holds another kind of network"):
        MappingNetwork.load(tmp_path / "decoder.safetensors")
    (tmp_path / "text").write_text("no")
    with pytest.raises(GlannError, match=r"text: not a safetensors file"):
        Generator.load(tmp_path / "text")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["mapping.matrix", "decoder.network.to_image.weight"])
def test_a_generator_whose_weights_are_not_finite_is_refused(
    generator: Generator, name: str, value: float, tmp_path: Path
):
    generator.save(tmp_path / "generator.safetensors")
    tensors, config = load_tensors(tmp_path / "generator.safetensors")
    tensors[name].view(-1)[3] = value
    save_tensors(tmp_path / "generator.safetensors", tensors, config)
    with pytest.raises(
        GlannError, match=rf"generator\.safetensors: .*{name} has numbers that are NaN or inf"
    ):
        Generator.load(tmp_path / "generator.safetensors")


@pytest.mark.parametrize("truncation", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("residuals", [False, True], ids=["plain", "residuals"])
@pytest.mark.parametrize("on_sphere", [False, True], ids=["cloud", "sphere"])
def test_interpolations_go_from_one_sample_to_the_next(
    generator: Generator, on_sphere: bool, residuals: bool, truncation: float
):
    mapping = generator.mapping
    latents = torch.randn(50, 8, generator=stream(0, "latents"))
    fit_range(mapping, F.normalize(latents, dim=1) if on_sphere else 3 * latents + 1)
    assert bool(mapping.on_sphere) == on_sphere
    # As moment_correction leaves them: neither the identity nor a rotation.
    mapping.matrix.add_(0.2 * torch.randn(8, 8, generator=stream(0, "matrix")))
    mapping.offset.add_(0.2 * torch.randn(8, generator=stream(0, "offset")))
    if residuals:
        anchors = F.normalize(torch.randn(50, 8, generator=stream(0, "anchors")), dim=1)
        pulls = torch.randn(50, 8, generator=stream(0, "pulls"))
        mapping.set_residuals(*borrowed_residuals(anchors, anchors + pulls, 0.5, stream(0, "draws")))
    samples = generator.sample(6, seed=3, truncation=truncation)
    strips = generator.interpolate(3, 5, seed=3, truncation=truncation)
    assert strips.shape == (3, 5, 16, 16, 3)
    # Another block of the batch may round a pixel the other way.
    assert np.abs(strips[:, 0].astype(int) - samples[0::2]).max() <= 1
    assert np.abs(strips[:, -1].astype(int) - samples[1::2]).max() <= 1
    leaps = [
        np.abs(np.diff(generator.interpolate(3, steps, 3, truncation).astype(float), axis=1)).max()
        for steps in (17, 65)
    ]
    assert leaps[1] < 0.5 * leaps[0]  # a way without a leap: the finer, the less changes at once


def test_an_interpolation_has_a_row_and_both_ends(generator: Generator):
    for rows, steps, message in ((3, 1, "steps: 1"), (0, 5, "rows: 0")):
        with pytest.raises(GlannError, match=message):
            generator.interpolate(rows, steps)


def test_slerp_keeps_to_the_great_circle():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    half = slerp(a, b, torch.tensor([[0.5]]))
    assert torch.allclose(half, torch.tensor([[3.0, 3.0]]) / 2**0.5)
    assert torch.allclose(slerp(a, a, torch.tensor([[0.3]])), a)
    assert torch.allclose(slerp(a, -a, torch.tensor([[0.25]])), a / 2)  # opposite ends: a straight line


def test_truncation_makes_samples_more_alike(generator: Generator):
    generator.mapping.network[0].bias.data.normal_(
        generator=stream(0, "bias")
    )  # a typical latent for zero noise to lead to
    spread = [generator.sample(64, truncation=t).std(axis=0).mean() for t in (0.1, 1.0)]
    assert spread[0] < 0.5 * spread[1]


def test_decoding_ignores_the_length_of_a_latent(generator: Generator):
    latents = torch.randn(3, 8)
    assert np.array_equal(generator.decode(latents), generator.decode(5 * latents))


def test_a_grid_shows_each_image_in_its_place():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2) * 10
    picture = grid(images, columns=3)
    assert picture.shape == (14, 20, 1)
    assert picture[4, 4] == 0 and picture[4, 16] == 20 and picture[10, 10] == 40 and picture[10, 16] == 255


@pytest.mark.parametrize("blocks", [False, True], ids=["one array", "blocks"])
def test_images_are_saved_as_grid_array_or_single_files(generator: Generator, blocks: bool, tmp_path: Path):
    images = generator.sample(130)  # the stream yields 64, 64 and 2
    for name in ("a.png", "a.npy", "faces"):
        save_images(generator.stream(130) if blocks else images, str(tmp_path / name))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), grid(images))
    np.save(tmp_path / "numpys.npy", images)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()
    names = sorted(path.name for path in (tmp_path / "faces").iterdir())
    assert names == [f"{i:05d}.png" for i in range(130)]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "faces" / "00128.png")), images[128])


@pytest.mark.parametrize("name", ["a.png", "a.npy", "faces"])
def test_what_is_no_image_is_not_saved(name: str, tmp_path: Path):
    images = np.zeros((2, 16, 16, 3), np.uint8)
    for wrong, message in (
        (images / 255, r"found float64 \[2, 16, 16, 3\]"),
        (images[0], r"found uint8 \[16, 16, 3\]"),
        (images[..., :2], r"found uint8 \[2, 16, 16, 2\]"),
        (images[:0], r"found uint8 \[0, 16, 16, 3\]"),
        ([], "there are no images to save"),
    ):
        with pytest.raises(GlannError, match=message):
            save_images(wrong, tmp_path / name)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(GlannError, match=r"\[15, 16, 3\] after \[16, 16, 3\]"):
        save_images([images, images[:, 1:]], tmp_path / name)
    with pytest.raises(GlannError, match=r"a\.jpg: use a name ending in \.png"):
        save_images(images, tmp_path / "a.jpg")


def test_single_images_replace_links_and_not_what_these_lead_to(generator: Generator, tmp_path: Path):
    """DVC may link files to its cache, which must not change."""
    (tmp_path / "faces").mkdir()
    (tmp_path / "cached").write_text("kept")
    (tmp_path / "faces/00000.png").symlink_to(tmp_path / "cached")
    (tmp_path / "faces/00001.png").hardlink_to(tmp_path / "cached")
    save_images(generator.sample(2), tmp_path / "faces")
    assert (tmp_path / "cached").read_text() == "kept"
    assert all(Image.open(tmp_path / "faces" / f"0000{i}.png").size == (16, 16) for i in range(2))


def test_the_sample_stage_draws_grid_strip_and_single_images(generator: Generator, tmp_path: Path):
    draw_samples(generator, Sample(count=4, interpolations=2, interpolation_steps=3), tmp_path)
    assert Image.open(tmp_path / "grid.png").size == (2 * 18 + 2, 2 * 18 + 2)
    assert Image.open(tmp_path / "interpolation.png").size == (3 * 18 + 2, 2 * 18 + 2)
    assert len(list((tmp_path / "images").iterdir())) == 4


def test_nothing_or_latents_of_another_size_are_refused(generator: Generator):
    with pytest.raises(GlannError, match="count: 0"):
        generator.sample(0)
    with pytest.raises(GlannError, match=r"expected \[n, 8\], found \[2, 9\]"):
        generator.decode(torch.randn(2, 9))
    for noise in (torch.randn(2, 5), torch.randn(4), torch.randn(0, 4)):
        with pytest.raises(GlannError, match=r"noise: expected \[n, 4\], found"):
            generator.map(noise)
