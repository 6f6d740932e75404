import json
import os
import random
import struct
import subprocess
import sys

import joblib
import numpy as np
import pytest
from PIL import Image, ImageCms

from glann.avatars import draw_avatar
from glann.config import Prepare
from glann.decoding import to_rgb
from glann.errors import GlannError
from glann.prepare import OUTPUTS, prepare
from glann.streams import stream_seed
from glann.workers import in_order

WHITE = (255, 255, 255)
COLOR = (200, 100, 50)
GREY = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)  # COLOR's luma, ITU-R 601


def config(source, path="unused", **keys):
    return Prepare(
        **{"source": source, "path": str(path), "count": None, "resolution": 16, "holdout": 2, **keys}
    )


def run(config, out, seed=0, processes=1):
    """Prepare, and return training images, hold-out images and dataset.json."""
    prepare(config, seed, out, processes)
    assert {file.name for file in out.iterdir()} == set(OUTPUTS)
    return (
        np.load(out / "images.npy"),
        np.load(out / "holdout.npy"),
        json.loads((out / "dataset.json").read_text()),
    )


def stop(config, out, seed=0):
    """Prepare what cannot be prepared, and return the line that says why."""
    with pytest.raises(GlannError) as caught:
        prepare(config, seed, out, 1)
    assert not list(out.glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(folder, count, size=(16, 16)):
    """Save `count` images, each of one grey of its own: 0, 1, 2 ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("L", size, i).save(folder / f"{i:03}.png")
    return folder


def greys(*arrays):
    return [int(image[0, 0, 0]) for array in arrays for image in array]


def only_image(folder, out, **keys):
    """Prepare one file three times over, and return its pixels."""
    (file,) = folder.iterdir()
    for i in range(2):
        (folder / f"{i}{file.suffix}").write_bytes(file.read_bytes())
    images, holdout, _ = run(config("folder", folder, **keys), out)
    assert (images == holdout).all()
    return images[0]


# What comes out


def test_every_image_of_a_tree_becomes_one_training_or_holdout_image(tmp_path):
    fill(tmp_path / "in", 20)
    (tmp_path / "in/deep/deeper").mkdir(parents=True)
    for name in ("003.png", "011.png"):
        (tmp_path / "in" / name).rename(tmp_path / "in/deep/deeper" / name)
    images, holdout, dataset = run(config("folder", tmp_path / "in", holdout=5), tmp_path / "out")
    assert images.shape == (15, 16, 16, 3)
    assert holdout.shape == (5, 16, 16, 3)
    assert images.dtype == holdout.dtype == np.uint8
    assert sorted(greys(images, holdout)) == list(range(20))
    means = dataset.pop("channel_means")
    assert np.allclose(means, images.mean((0, 1, 2)) / 255)
    assert len(dataset.pop("sha256")) == 64
    assert dataset == {
        "source": "folder",
        "found": 20,
        "requested": None,
        "taken": 20,
        "train": 15,
        "holdout": 5,
        "bad": 0,
        "bad_files": [],
    }


def test_the_preview_shows_the_first_training_images(tmp_path):
    images, _, _ = run(config("folder", fill(tmp_path / "in", 80)), tmp_path / "out")
    preview = np.asarray(Image.open(tmp_path / "out/preview.png"))
    assert (preview[2:18, 2:18] == images[0]).all()
    assert (preview[-18:-2, -18:-2] == images[63]).all()  # an 8 x 8 grid with gaps of 2 pixels


def test_equal_seeds_give_equal_bytes_and_other_seeds_another_choice(tmp_path):
    chosen = config("folder", fill(tmp_path / "in", 40), count=10)
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(chosen, tmp_path / out, seed)
    for name in OUTPUTS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_the_place_of_the_folder_changes_nothing(tmp_path, monkeypatch):
    fill(tmp_path / "in", 9)
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    run(config("folder", tmp_path / "in", max_bad_fraction=0.5), tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").rename(tmp_path / "elsewhere/in")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(config("folder", "in/", max_bad_fraction=0.5), tmp_path / "b")
    for name in OUTPUTS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_worker_processes_change_no_byte(tmp_path):
    fill(tmp_path / "in", 150)
    for i in range(0, 150, 10):
        (tmp_path / "in" / f"{i:03}.png").write_bytes(b"")
    for processes in (1, 2):
        run(config("folder", tmp_path / "in", count=120), tmp_path / str(processes), processes=processes)
    for name in OUTPUTS:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_script_without_a_main_guard_may_use_worker_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from glann.workers import in_order\nprint(*in_order(abs, [-1, 2, -3], processes=2))")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "1 2 3\n"


def test_a_worker_that_is_killed_is_one_line():
    with pytest.raises(GlannError, match="a worker process died"):
        list(in_order(os._exit, [1], processes=2))


def test_count_takes_a_random_part(tmp_path):
    images, holdout, dataset = run(config("folder", fill(tmp_path / "in", 60), count=30), tmp_path / "out")
    taken = greys(images, holdout)
    assert len(set(taken)) == 30
    assert min(taken) < 20
    assert max(taken) >= 40  # with the line above: no thirty in a row
    assert (dataset["found"], dataset["taken"], dataset["holdout"]) == (60, 30, 2)


def test_the_holdout_is_a_random_choice(tmp_path):
    _, holdout, _ = run(config("folder", fill(tmp_path / "in", 60), holdout=20), tmp_path / "out")
    assert min(greys(holdout)) < 20
    assert max(greys(holdout)) >= 40


def test_a_count_above_what_there_is_takes_all(tmp_path):
    _, _, dataset = run(config("folder", fill(tmp_path / "in", 6), count=1000), tmp_path / "out")
    assert (dataset["requested"], dataset["found"], dataset["taken"]) == (1000, 6, 6)


def test_the_next_file_stands_in_for_a_bad_one(tmp_path):
    fill(tmp_path / "in", 40)
    for i in range(0, 40, 4):
        (tmp_path / "in" / f"{i:03}.png").write_bytes(b"")
    images, holdout, dataset = run(
        config("folder", tmp_path / "in", count=30, max_bad_fraction=0.5), tmp_path / "out"
    )
    assert len(images) + len(holdout) == dataset["taken"] == 30
    assert dataset["bad"] == len(dataset["bad_files"]) > 0


def test_earlier_outputs_are_replaced_and_survive_a_failure(tmp_path):
    fill(tmp_path / "in", 10)
    run(config("folder", tmp_path / "in"), tmp_path / "out", seed=1)
    before = (tmp_path / "out/images.npy").read_bytes()
    with pytest.raises(GlannError):
        prepare(config("folder", tmp_path / "in", holdout=10), 1, tmp_path / "out")
    assert (tmp_path / "out/images.npy").read_bytes() == before
    run(config("folder", tmp_path / "in"), tmp_path / "out", seed=2)
    assert (tmp_path / "out/images.npy").read_bytes() != before


# Pixels


MADE = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
DEEP = {"I": np.int32, "F": np.float32, "I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}


def in_mode(mode):
    """Make an image of COLOR, or of its grey, in any of Pillow's modes."""
    rgb = Image.new("RGB", (20, 20), COLOR)
    if mode in DEEP:
        bits = np.full((20, 20), GREY * 257, DEEP[mode])
        return Image.frombytes(mode, (20, 20), bits.tobytes())
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
    if mode == "1":
        return Image.new("1", (20, 20), 1)
    if mode in ("P", "PA"):
        return rgb.quantize(4).convert(mode)  # convert("P") alone would dither
    steps = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    return rgb.convert(steps).convert(mode)


@pytest.mark.parametrize("mode", [*MADE, *DEEP])
def test_every_pillow_mode_becomes_rgb(mode):
    grey = mode in DEEP or mode in ("L", "LA", "La")
    expected = WHITE if mode == "1" else (GREY,) * 3 if grey else COLOR
    rgb = to_rgb(in_mode(mode), WHITE)
    assert rgb.mode == "RGB"
    # Two: what YCbCr, HSV and LAB in 8 bits lose.
    assert np.abs(np.asarray(rgb, int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, ".png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [
        (mode, ".tif")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16")
    ]
    + [(mode, ".jpg") for mode in ("L", "RGB", "CMYK")]
    + [("RGB", ".webp"), ("RGBA", ".webp"), ("P", ".gif"), ("RGB", ".bmp"), ("L", ".pgm"), ("RGB", ".ppm")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_every_kind_are_read(tmp_path, mode, suffix, channels):
    (tmp_path / "in").mkdir()
    in_mode(mode).save(tmp_path / "in" / f"image{suffix}")
    pixels = only_image(tmp_path / "in", tmp_path / "out", channels=channels)
    assert pixels.shape == (16, 16, channels)
    grey = channels == 1 or mode in ("L", "LA", "I", "F", "I;16")
    expected = WHITE[:channels] if mode == "1" else (GREY,) * channels if grey else COLOR
    # Six: what JPEG and lossy WebP change at their default quality.
    assert np.abs(pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("<u2", (0, 257, 65535), (0, 1, 255)),
        ("<i4", (0, 7, 255), (0, 7, 255)),  # 8 bits stored as 32
        ("<i4", (-5, 257, 65535), (0, 1, 255)),
        ("<i4", (0, 2**30, 2**31 - 1), (0, 128, 255)),
        ("<f4", (0, 0.5, 1), (0, 128, 255)),
        ("<f4", (-3, 7, 255), (0, 7, 255)),
        ("<f4", (0, 257, 65535), (0, 1, 255)),
    ],
)
def test_deep_greys_are_scaled_to_8_bits(dtype, values, expected):
    mode = {"<u2": "I;16", "<i4": "I", "<f4": "F"}[dtype]
    picture = Image.frombytes(mode, (3, 1), np.array([values], dtype).tobytes())
    assert np.asarray(to_rgb(picture, WHITE))[0, :, 0].tolist() == list(expected)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(tmp_path, orientation, suffix):
    quarters = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]
    upright = Image.fromarray(np.array(quarters, np.uint8).repeat(32, 0).repeat(32, 1))
    way = Image.Transpose
    stored = {  # the EXIF standard says how to turn the stored image upright; these are the ways back
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_90,
        7: way.TRANSVERSE,
        8: way.ROTATE_270,
    }
    picture = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in" / f"turned{suffix}", exif=exif)
    pixels = only_image(tmp_path / "in", tmp_path / "out")
    assert (
        np.abs(pixels[4:16:8, 4:16:8].astype(int) - quarters).max() <= 10
    )  # quarters' middles; lossy formats


def test_transparent_pixels_show_the_background_and_bleed_nothing(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 255, 0)  # transparent, over a colour that must not be seen
    pixels[:, 32:] = (10, 20, 30, 255)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/cut.png")
    image = only_image(tmp_path / "in", tmp_path / "out", background=[10, 20, 30])
    assert (image == (10, 20, 30)).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_declared_transparent_shows_the_background(tmp_path, mode):
    picture = Image.new(mode, (16, 16), 0)
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in/keyed.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (only_image(tmp_path / "in", tmp_path / "out", background=[9, 8, 7]) == (9, 8, 7)).all()


def test_half_transparent_is_half_background(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (16, 16), (0, 0, 0, 128)).save(tmp_path / "in/half.png")
    assert (only_image(tmp_path / "in", tmp_path / "out") == 127).all()  # 255 * (1 - 128 / 255)


def three_bands(path, tall):
    bands = np.repeat(np.array([50, 100, 200], np.uint8), 32)[:, None].repeat(32, 1)  # [96, 32]
    path.parent.mkdir()
    Image.fromarray(bands if tall else bands.T.copy()).save(path)


@pytest.mark.parametrize("tall", [True, False])
def test_crop_keeps_the_centre(tmp_path, tall):
    three_bands(tmp_path / "in/bands.png", tall)
    image = only_image(tmp_path / "in", tmp_path / "out", fit="crop")
    assert (image[2:-2, 2:-2] == 100).all()  # the outermost pixels are blended with what was cut off


@pytest.mark.parametrize("tall", [True, False])
def test_pad_keeps_everything_and_fills_with_the_background(tmp_path, tall):
    three_bands(tmp_path / "in/bands.png", tall)
    image = only_image(tmp_path / "in", tmp_path / "out", fit="pad", background=[1, 2, 3], resolution=48)
    image = image if tall else image.transpose(1, 0, 2)
    assert (image[:, :16] == (1, 2, 3)).all()
    assert (image[:, 32:] == (1, 2, 3)).all()
    assert image[[8, 24, 40], 24, 0].tolist() == [50, 100, 200]


def test_shrinking_is_antialiased(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.indices((160, 160)).sum(0).astype(np.uint8) % 2 * 255).save(tmp_path / "in/check.png")
    image = only_image(tmp_path / "in", tmp_path / "out")
    assert np.abs(image.astype(int) - 127.5).max() < 4  # a checkerboard of single pixels is grey from afar


def test_a_large_photograph_keeps_its_colours(tmp_path):
    (tmp_path / "in").mkdir()
    ramp = np.linspace(0, 255, 2000).astype(np.uint8)
    Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[:1]), -1)).save(
        tmp_path / "in/photo.jpg"
    )
    image = only_image(tmp_path / "in", tmp_path / "out").astype(int)
    middle = (np.arange(16) + 0.5) / 16 * 255
    assert np.abs(image[:, 8, 0] - middle).max() <= 4
    assert np.abs(image[8, :, 1] - middle).max() <= 4


def test_the_first_frame_of_an_animation_counts(tmp_path):
    (tmp_path / "in").mkdir()
    later = [Image.new("RGB", (16, 16), WHITE)]
    Image.new("RGB", (16, 16), COLOR).save(tmp_path / "in/moving.gif", save_all=True, append_images=later)
    assert (only_image(tmp_path / "in", tmp_path / "out") == COLOR).all()


# Bad files


def spoil(folder):
    """Put one bad file of every kind into a folder, and return what should be said of each."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    for suffix in ("jpg", "png", "gif", "webp", "tif"):
        noise.save(folder / f"cut.{suffix}")
        content = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) * 6 // 10])
    (folder / "empty.png").write_bytes(b"")
    (folder / "README.txt").write_text("where these come from")
    (folder / "labels.json").write_text("{}")
    (folder / "noise.jpg").write_bytes(random.Random(0).randbytes(2000))
    (folder / "dangling.png").symlink_to("gone.png")
    (folder / "circle.png").symlink_to("circle.png")
    Image.new("1", (10_000, 10_000)).save(folder / "large.png")  # 100 million pixels: Pillow warns
    Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")  # 200 million: Pillow refuses
    return {
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        "cut.gif": "truncated",
        "cut.webp": "",  # libwebp's own words
        "cut.tif": "",
        "empty.png": "empty file",
        "README.txt": "not an image file",
        "labels.json": "not an image file",
        "noise.jpg": "not an image file",
        "dangling.png": "No such file",
        "circle.png": "symbolic links",
        "large.png": "decompression bomb",
        "bomb.png": "decompression bomb",
    }


def test_bad_files_are_skipped_and_listed_by_name_and_reason(tmp_path):
    fill(tmp_path / "in", 200)
    expected = spoil(tmp_path / "in")
    images, holdout, dataset = run(config("folder", tmp_path / "in"), tmp_path / "out")
    assert sorted(greys(images, holdout)) == list(range(200))
    assert dataset["found"] == 200 + len(expected)
    assert dataset["bad"] == len(expected)
    reasons = {file["name"]: file["reason"] for file in dataset["bad_files"]}
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
        assert reasons[name]
        assert str(tmp_path) not in reasons[name]


def test_more_bad_files_than_allowed_stop_with_one_line_and_leave_nothing(tmp_path):
    fill(tmp_path / "in", 8)
    for i in range(12):
        (tmp_path / "in" / f"bad\n{i}.png").write_bytes(b"no image")
    line = stop(config("folder", tmp_path / "in"), tmp_path / "out")
    assert "12 of 20 images" in line
    assert "prepare.max_bad_fraction" in line
    assert r"bad\n" in line
    assert "not an image file" in line


def test_a_tolerant_threshold_lets_the_same_folder_pass(tmp_path):
    fill(tmp_path / "in", 8)
    for i in range(12):
        (tmp_path / "in" / f"bad{i}.png").write_bytes(b"no image")
    images, holdout, _ = run(config("folder", tmp_path / "in", max_bad_fraction=0.6), tmp_path / "out")
    assert sorted(greys(images, holdout)) == list(range(8))


def test_too_few_good_images_are_reported_as_such(tmp_path):
    fill(tmp_path / "in", 5)
    (tmp_path / "in/bad.png").write_bytes(b"")
    line = stop(config("folder", tmp_path / "in", holdout=5, max_bad_fraction=1.0), tmp_path / "out")
    assert line.startswith("prepare.holdout: 5 images are to be held out and there are only 5")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_files_and_folders_that_may_not_be_read_are_listed(tmp_path):
    fill(tmp_path / "in", 10)
    fill(tmp_path / "in/closed", 1)
    (tmp_path / "in/000.png").chmod(0)
    (tmp_path / "in/closed").chmod(0)
    _, _, dataset = run(config("folder", tmp_path / "in", max_bad_fraction=0.5), tmp_path / "out")
    (tmp_path / "in/closed").chmod(0o700)
    assert [file["name"] for file in dataset["bad_files"]] == ["000.png", "closed"]
    assert {file["reason"] for file in dataset["bad_files"]} == {"Permission denied"}


# Trees


def test_hidden_files_pipes_and_loops_are_passed_over(tmp_path):
    fill(tmp_path / "in", 5)
    fill(tmp_path / "in/.hidden", 3)
    (tmp_path / "in/.DS_Store").write_bytes(b"\0")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in/pipe.png")
    (tmp_path / "in/alias.png").symlink_to("003.png")
    images, holdout, dataset = run(config("folder", tmp_path / "in"), tmp_path / "out")
    assert sorted(greys(images, holdout)) == [0, 1, 2, 3, 3, 4]
    assert dataset["bad"] == 0


def test_the_folder_itself_may_be_a_link(tmp_path):
    fill(tmp_path / "real", 5)
    (tmp_path / "in").symlink_to(tmp_path / "real")
    images, holdout, _ = run(config("folder", tmp_path / "in"), tmp_path / "out")
    assert sorted(greys(images, holdout)) == list(range(5))


def test_odd_names_are_read_and_listed(tmp_path):
    fill(tmp_path / "in", 3)
    names = [b"two words.png", b"new\nline.png", b"\xff\xfe.png", "ü\u202e😀.png".encode()]
    for i, name in enumerate(map(os.fsdecode, names)):
        Image.new("L", (16, 16), 100 + i).save(tmp_path / "in" / name)
        (tmp_path / "in" / f"bad{name}").touch()
    images, holdout, dataset = run(config("folder", tmp_path / "in", max_bad_fraction=0.9), tmp_path / "out")
    assert sorted(greys(images, holdout)) == [0, 1, 2, 100, 101, 102, 103]
    assert [file["name"] for file in dataset["bad_files"]] == [
        "bad\\xff\\xfe.png",
        "badnew\\nline.png",
        "badtwo words.png",
        "badü\\u202e😀.png",
    ]


@pytest.mark.parametrize("source", ["folder", "npy"])
def test_a_missing_path_is_one_line(tmp_path, source):
    assert stop(config(source, tmp_path / "gone"), tmp_path / "out").startswith("prepare.path: ")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "in").write_text("text")
    assert "in: Not a directory" in stop(config("folder", tmp_path / "in"), tmp_path / "out")


def test_a_folder_without_files_is_one_line(tmp_path):
    (tmp_path / "in/deeper").mkdir(parents=True)
    assert "prepare.path: no files in" in stop(config("folder", tmp_path / "in"), tmp_path / "out")


def test_too_few_images_name_the_holdout(tmp_path):
    line = stop(config("folder", fill(tmp_path / "in", 6), holdout=6), tmp_path / "out")
    assert line.startswith("prepare.holdout: ")


# Arrays


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
    images, _, _ = run(config("npy", tmp_path / "in.npy", background=[5, 6, 7]), tmp_path / "out")
    assert (images == (5, 6, 7)).all()


def test_a_row_outside_0_to_1_is_a_bad_image(tmp_path):
    array = np.full((40, 16, 16), 0.5, np.float32)
    array[7, 0, 0], array[30, 0, 0] = 1.5, np.nan
    np.save(tmp_path / "in.npy", array)
    _, _, dataset = run(config("npy", tmp_path / "in.npy"), tmp_path / "out")
    assert [file["name"] for file in dataset["bad_files"]] == ["row 30", "row 7"]
    assert "from 0.5 to 1.5, outside 0 to 1" in dataset["bad_files"][1]["reason"]


def test_floats_from_0_to_255_stop_with_the_range_found(tmp_path):
    np.save(tmp_path / "in.npy", np.linspace(0, 255, 5 * 256).reshape(5, 16, 16))
    assert "outside 0 to 1" in stop(config("npy", tmp_path / "in.npy"), tmp_path / "out")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 16, 16), np.int64), "is int64; expected uint8"),
        (np.zeros((9, 3, 16, 16), np.uint8), "shape [9, 3, 16, 16]; expected [n, h, w]"),
        (np.zeros((9, 16), np.uint8), "shape [9, 16]"),
        (np.zeros((9, 0, 16), np.uint8), "shape [9, 0, 16]"),
        (np.array([{"a": 1}] * 9), "not an .npy array"),
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


# Avatars


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


# Known data sets


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
