"""Arrays, avatars and the data sets of torchvision and scikit-learn."""

import os
import random
import struct

import joblib
import numpy as np
import pytest
from PIL import Image
from preparing import config, greys, run, stop

from glann.prepare.avatars import draw_avatar
from glann.prepare.reading import MOST_PIXELS, decode_row
from glann.runtime.randomness import stream_seed


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["u1", "<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_arrays_of_every_form_are_taken_as_they_are(tmp_path, shape, dtype, channels):
    values = np.arange(12, dtype=np.uint8) * 20
    array = np.broadcast_to(values.reshape(12, 1, 1, *(1 for _ in shape)), (12, 16, 16, *shape))
    np.save(tmp_path / "in.npy", array if dtype == "u1" else (array / 255).astype(dtype))
    images, holdout, dataset = run(config("npy", tmp_path / "in.npy", channels=channels), tmp_path / "out")
    assert images.shape[1:] == (16, 16, channels)
    assert sorted(greys(images, holdout)) == values.tolist()
    assert dataset["bad"] == 0


def test_the_rows_of_an_array_keep_their_pixels(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    np.save(tmp_path / "in.npy", np.asfortranarray(array))
    images, holdout, _ = run(config("npy", tmp_path / "in.npy"), tmp_path / "out")
    assert {row.tobytes() for row in (*images, *holdout)} == {row.tobytes() for row in array}


def test_the_rows_of_an_array_are_resized_and_their_transparency_filled(tmp_path):
    array = np.zeros((5, 20, 40, 4), np.uint8)
    np.save(tmp_path / "in.npy", array)
    images, _, _ = run(
        config("npy", tmp_path / "in.npy", repeats="keep", background=[5, 6, 7]), tmp_path / "out"
    )
    assert (images == (5, 6, 7)).all()


def test_a_row_outside_0_to_1_is_a_bad_image(tmp_path):
    array = np.full((40, 16, 16), 0.5, np.float32)
    array[7, 0, 0], array[30, 0, 0] = 1.5, np.nan
    np.save(tmp_path / "in.npy", array)
    _, _, dataset = run(config("npy", tmp_path / "in.npy", repeats="keep"), tmp_path / "out")
    assert [file["name"] for file in dataset["bad_files"]] == ["row 30", "row 7"]
    assert "from 0.5 to 1.5, outside 0 to 1" in dataset["bad_files"][1]["reason"]


def test_floats_from_0_to_255_stop_with_the_range_found(tmp_path):
    np.save(tmp_path / "in.npy", np.linspace(0, 255, 5 * 256).reshape(5, 16, 16))
    line = stop(config("npy", tmp_path / "in.npy"), tmp_path / "out")
    assert line.startswith("prepare.path: ")
    assert "in.npy has values from 0 to 255; expected uint8, or float from 0 to 1: save array / 255" in line


def from_to(low, high, dtype=np.float64):
    """Make 20 images, each with all values from low to high in an order of its own."""
    values = np.random.default_rng(0).permuted(np.linspace([low] * 20, [high] * 20, 256, axis=1), axis=1)
    return values.reshape(20, 16, 16).astype(dtype)


@pytest.mark.parametrize(
    ("array", "says", "to_unit"),
    [
        (from_to(-1, 1), "values from -1 to 1;", lambda a: (a + 1) / 2),
        (from_to(0, 255, np.float32), "values from 0 to 255;", lambda a: a / 255),
        (from_to(0, 65535), "values from 0 to 65535;", lambda a: a / 65535),
        (from_to(0, 1.005), "values from 0 to 1.005;", lambda a: np.clip(a, 0, 1)),
        (from_to(-3, 4), "values from -3 to 4;", lambda a: (a - a.min()) / (a.max() - a.min())),
        (from_to(0, 255, np.int64), "is int64;", lambda a: a.astype("uint8")),
        (from_to(0, 1, np.longdouble), "is float128;", lambda a: a.astype("float32")),
        (from_to(0, 1, bool), "is bool;", lambda a: a.astype("float32")),
    ],
)
def test_arrays_in_other_units_stop_with_the_way_to_0_to_1_which_works(tmp_path, array, says, to_unit):
    np.save(tmp_path / "in.npy", array)
    line = stop(config("npy", tmp_path / "in.npy", max_bad_fraction=0), tmp_path / "out")
    assert says in line
    expression = line.split(": save ")[1]
    told = eval(expression, {"array": array, "numpy": np})
    assert (told == to_unit(array)).all()
    assert "max_bad_fraction" not in line
    np.save(tmp_path / "in.npy", told)
    assert run(config("npy", tmp_path / "in.npy", max_bad_fraction=0), tmp_path / "out")[2]["bad"] == 0


def test_an_array_of_nan_is_said_to_be_one(tmp_path):
    np.save(tmp_path / "in.npy", np.full((9, 16, 16), np.nan))
    line = stop(config("npy", tmp_path / "in.npy"), tmp_path / "out")
    assert "has NaN or infinite values; expected" in line
    assert "numpy.nan_to_num(array)" in line


def test_some_rows_outside_leave_both_ways_open(tmp_path):
    array = np.full((40, 16, 16), 0.5)
    array[::5, 0, 0] = -0.7
    np.save(tmp_path / "in.npy", array)
    line = stop(config("npy", tmp_path / "in.npy"), tmp_path / "out")
    assert line.startswith("prepare.max_bad_fraction: 8 of 40 images cannot be used")
    assert "remove or repair them, or save (array + 1) / 2 if the whole array is like this" in line
    assert line.endswith("or raise prepare.max_bad_fraction to 0.2")


def sparse(path, shape, dtype="u1"):
    """Write an array of zeros that takes no room on the disk."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def test_images_of_an_array_have_the_limit_of_files(tmp_path):
    for shape in [(3, 20_000, 20_000), (3, 2**21, 1)]:
        sparse(tmp_path / "in.npy", shape)
        line = stop(config("npy", tmp_path / "in.npy"), tmp_path / "out")
        assert f"has images of {shape[1]} x {shape[2]} pixels; at most 89,478,485 pixels" in line
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_floats_become_bytes_by_rounding_in_double_precision(tmp_path, dtype):
    row = np.random.default_rng(0).random((1100, 1000)).astype(dtype)  # more than one block
    expected = np.rint(row.astype(np.float64) * 255).astype(np.uint8)
    for same in (row, np.asfortranarray(row), row[:, ::-1][:, ::-1]):
        assert (np.asarray(decode_row(same, config("npy"))) == expected).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 16, 16), np.int64), "is int64; expected uint8"),
        (np.zeros((9, 3, 16, 16), np.uint8), "shape [9, 3, 16, 16]; expected [n, h, w]"),
        (np.zeros((9, 3, 16, 16), np.uint8), "c = 1, 3 or 4; save numpy.moveaxis(array, 1, -1)"),
        (np.zeros((9, 16, 16, 7), np.uint8), "expected [n, h, w] or [n, h, w, c] with c = 1, 3 or 4"),
        (np.zeros((9, 16), np.uint8), "shape [9, 16]"),
        (np.zeros((9, 0, 16), np.uint8), "shape [9, 0, 16]"),
        (np.array([{"a": 1}] * 9), "write one with numpy.save"),
        (np.zeros((0, 16, 16), np.uint8), "prepare.holdout"),
    ],
)
def test_other_arrays_are_one_line(tmp_path, array, message):
    np.save(tmp_path / "in.npy", array)
    assert message in stop(config("npy", tmp_path / "in.npy"), tmp_path / "out")


def test_a_truncated_array_is_one_line(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((9, 16, 16), np.uint8))
    os.truncate(tmp_path / "in.npy", 1000)
    assert stop(config("npy", tmp_path / "in.npy"), tmp_path / "out").startswith("prepare.path: ")


def test_avatars_are_the_same_whatever_the_count(tmp_path):
    few, held, _ = run(config("avatars", count=12), tmp_path / "few")
    many, held_too, _ = run(config("avatars", count=20), tmp_path / "many")
    assert (held == held_too).all()
    assert (few == many[:10]).all()


def test_avatars_change_with_the_seed_and_touch_no_global_generator(tmp_path):
    before = random.getstate()
    a, _, _ = run(config("avatars", count=12), tmp_path / "a", seed=1)
    b, _, _ = run(config("avatars", count=12), tmp_path / "b", seed=2)
    assert random.getstate() == before
    assert (a != b).any()


def test_avatars_are_varied():
    keys = config("avatars", count=100, resolution=32)
    faces = [np.asarray(draw_avatar(stream_seed(0, "face", i), keys), float) for i in range(60)]
    assert len({face.tobytes() for face in faces}) == 60
    assert len({tuple(face[0, 0]) for face in faces}) == 4  # the backgrounds
    assert np.std(faces, axis=0).mean() > 25  # grey levels by which a pixel differs from face to face


def test_avatars_fill_any_size(tmp_path):
    images, _, _ = run(config("avatars", count=4, resolution=50, channels=1), tmp_path / "out")
    assert images.shape == (2, 50, 50, 1)


def write_idx(path, array):
    """Write MNIST's file format: two zeros, type 8 (uint8), the dimensions, the values."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


@pytest.mark.parametrize(("source", "name"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_is_read_from_the_cache(tmp_path, monkeypatch, source, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    digits = np.arange(10, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    for part in ("train", "t10k"):
        write_idx(tmp_path / "glann" / name / "raw" / f"{part}-images-idx3-ubyte", digits)
        write_idx(tmp_path / "glann" / name / "raw" / f"{part}-labels-idx1-ubyte", digits[:, 0, 0])
    images, holdout, dataset = run(config(source, resolution=32, channels=1), tmp_path / "out")
    assert images.shape == (8, 32, 32, 1)
    assert sorted(greys(images, holdout)) == list(range(10))
    assert dataset["source"] == source


def test_olivetti_is_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "glann").mkdir()
    faces = np.random.default_rng(0).integers(0, 256, (400, 64 * 64)).astype(np.uint8)
    joblib.dump(faces, tmp_path / "glann/olivetti_py3.pkz", compress=6)  # as scikit-learn keeps them
    images, holdout, _ = run(config("olivetti", resolution=64, channels=1), tmp_path / "out")
    stored = faces.reshape(400, 64, 64).transpose(0, 2, 1)
    assert {image.tobytes() for image in (*images, *holdout)} == {face.tobytes() for face in stored}


def test_lfw_is_read_from_the_cache_and_cut_to_the_face(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    photo = np.zeros((250, 250), np.uint8)
    photo[70:195, 62:187] = 200
    for person in ("Ada_Lovelace", "Emmy_Noether", "Grace_Hopper"):
        folder = tmp_path / "glann/lfw_home/lfw_funneled" / person
        folder.mkdir(parents=True)
        Image.fromarray(photo).save(folder / f"{person}_0001.jpg", quality=100)
    (tmp_path / "glann/lfw_home/lfw_funneled/pairs_01.txt").write_text("")
    images, holdout, dataset = run(config("lfw"), tmp_path / "out")
    assert dataset["found"] == 3
    assert np.abs(np.concatenate([images, holdout]).astype(int) - 200).max() <= 2


@pytest.mark.parametrize("source", ["cifar10", "celeba"])
def test_a_download_that_fails_says_which_files_go_where(tmp_path, monkeypatch, source):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for scheme in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nothing listens there
    line = stop(config(source), tmp_path / "out")
    assert line.startswith(f"prepare.source: no {source} (")
    assert str(tmp_path / "cache/glann") in line
