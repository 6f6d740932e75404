"""Feature extraction: real images through each kind, with the weights that this machine has."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from glann.errors import GlannError
from glann.evaluate.features import choose_kind, extract, feature_network, inception_cache
from glann.evaluate.metrics import prd
from glann.evaluate.report import curve_points
from glann.images.tensors import thumbnails
from glann.runtime.compute import execution
from glann.runtime.npy import load_npy, save_npy
from glann.runtime.settings import Compute

VGG_WEIGHTS = os.environ.get("GLANN_VGG_WEIGHTS")
needs_vgg = pytest.mark.skipif(not VGG_WEIGHTS, reason="GLANN_VGG_WEIGHTS names no VGG-16 weights file")


class Untrained(FeatureExtractorInceptionV3):
    """Inception as it is drawn, before any weights are loaded."""

    def load_state_dict(self, *_):
        pass


@pytest.fixture(scope="module")
def run():
    return execution(Compute(device="cpu", precision="float32", threads=1))


def blobs(n, size=48, channels=3, seed=0):
    """Bright discs of random place and radius on dark ground, uint8 [n, size, size, channels]."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    cx, cy, r = draw.uniform(0.3, 0.7, (3, n, 1, 1)) * size
    inside = np.hypot(x - cx, y - cy) < r / 2
    colour = draw.integers(100, 256, (n, 1, 1, channels))
    return (inside[..., None] * colour + 20).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_features_keep_the_distances_of_small_images(cpu, channels):
    images = blobs(40, 16, channels)
    features = extract(feature_network("pixels", None, images, cpu), images, "test")
    assert features.shape == (40, 39)  # 40 images span 39 directions
    assert features.dtype == torch.float32
    flat = torch.from_numpy(images.reshape(40, -1)).double() / 255
    assert torch.allclose(torch.pdist(features.double()), torch.pdist(flat), rtol=1e-5)


def test_pixel_features_are_fitted_to_the_reference_and_then_fixed(cpu):
    network = feature_network("pixels", None, blobs(100), cpu)
    others = blobs(70, seed=1)
    features = extract(network, others, "test")
    assert features.shape == (70, 64)
    # An image's features do not depend on the images it comes with.
    assert torch.allclose(extract(network, others[65:], "test"), features[65:], atol=1e-6)


def test_features_of_a_memory_mapped_file_are_those_of_the_array(cpu, tmp_path):
    images = blobs(70)
    save_npy(tmp_path / "images.npy", images)
    mapped = load_npy(tmp_path / "images.npy", mmap=True)
    network = feature_network("pixels", None, mapped, cpu)
    assert torch.equal(extract(network, mapped, "test"), extract(network, images, "test"))


def test_thumbnails_are_the_means_of_areas():
    images = blobs(3, 32)
    expected = images.reshape(3, 16, 2, 16, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(3, -1) / 255
    assert np.allclose(thumbnails(images, 16).numpy(), expected, atol=1e-6)
    assert np.allclose(thumbnails(images, 64).numpy().sum(), images.sum() / 255)  # never enlarged


@pytest.mark.filterwarnings("error")
def test_two_reference_images_are_enough_for_pixels_even_equal_ones(cpu):
    for images in (blobs(2), blobs(1).repeat(2, axis=0)):
        features = extract(feature_network("pixels", None, images, cpu), images, "test")
        assert features.shape == (2, 1)
        assert features.isfinite().all()


def test_auto_takes_inception_only_where_its_weights_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert choose_kind("auto", None) == "pixels"
    assert choose_kind("auto", "inception.pth") == "inception"
    assert choose_kind("vgg", None) == "vgg"
    inception_cache().parent.mkdir(parents=True)
    inception_cache().touch()
    assert choose_kind("auto", None) == "inception"


def test_inception_reads_torch_fidelitys_weights(cpu, tmp_path):
    # The true weights are 90 MB on GitHub; random ones of the same shapes take the same way in.
    path = tmp_path / "inception.pth"
    torch.save({}, path)
    torch.save(Untrained("untrained", ["2048"], feature_extractor_weights_path=path).state_dict(), path)
    before = torch.random.get_rng_state()
    network = feature_network("inception", str(path), blobs(2), cpu)
    assert torch.equal(torch.random.get_rng_state(), before)
    grey = blobs(2, channels=1)
    features = extract(network, grey, "test")
    assert features.shape == (2, 2048)
    assert features.isfinite().all()
    assert torch.equal(network(grey.repeat(3, axis=-1)), features)


@pytest.mark.parametrize("content", [b"", b"not a pickle", "list", "tensors", "code"])
def test_other_files_are_refused_as_inception_weights_in_one_line(cpu, tmp_path, content):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        # Path is a class: torch-fidelity's own loading would call it.
        torch.save({"list": [1], "tensors": {"a": torch.ones(2)}, "code": Path("x")}[content], path)
    with pytest.raises(
        GlannError, match=r"weights\.pth: not torch-fidelity's Inception weights; download http"
    ) as e:
        feature_network("inception", str(path), blobs(2), cpu)
    assert "\n" not in str(e.value)


def test_downloaded_weights_that_are_damaged_are_to_be_deleted(cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    inception_cache().parent.mkdir(parents=True)
    inception_cache().write_bytes(b"cut short")
    with pytest.raises(GlannError, match=r"\.pth: damaged; delete it"):
        feature_network("inception", None, blobs(2), cpu)


def test_a_missing_weights_file_is_named(cpu):
    with pytest.raises(GlannError, match=r"evaluate\.weights: nowhere\.pth: no such file"):
        feature_network("inception", "nowhere.pth", blobs(2), cpu)


@needs_vgg
@pytest.mark.parametrize("size", [16, 48, 300])
def test_vgg_features_tell_images_apart_at_every_size(cpu, size):
    network = feature_network("vgg", VGG_WEIGHTS, blobs(2), cpu)
    images = blobs(3, size)
    features = extract(network, images, "test")
    assert features.shape == (3, 512)
    assert features.isfinite().all()
    # Discs of different place, size and colour differ by far more than rounding.
    assert torch.pdist(features).min() > 0.02 * features.norm(dim=1).mean()
    assert torch.equal(extract(network, images, "test"), features)


@needs_vgg
def test_grey_images_have_the_vgg_features_of_their_rgb_copies(cpu):
    network = feature_network("vgg", VGG_WEIGHTS, blobs(2), cpu)
    grey = blobs(2, channels=1)
    assert torch.allclose(network(grey), network(grey.repeat(3, axis=-1)), rtol=1e-4, atol=1e-4)


def test_the_curve_written_for_plots_keeps_its_right_end():
    same = blobs(200).reshape(200, -1)[:, :8].astype("float32")
    curve = prd(torch.from_numpy(same), torch.from_numpy(same), seed=0)
    points = curve_points({"same": curve})
    assert points[-1]["recall"] == 1 and points[-1]["precision"] > 0.99
