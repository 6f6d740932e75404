"""Files of every kind become squares of RGB or grey."""

import subprocess
import sys

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms
from preparing import COLOR, GREY, WHITE, config, fill, only_image, run

from glann.prepare.reading import BYTES_PER_PIXEL, to_rgb

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


def swapped_profile():
    """A profile whose red is blue, and whose blue is red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    return swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", ".png"), ("RGB", ".jpg"), ("RGBA", ".png"), ("P", ".png"), ("RGB", ".tif")]
)
def test_colours_are_converted_from_an_embedded_profile_to_srgb(tmp_path, mode, suffix):
    (tmp_path / "in").mkdir()
    in_mode(mode).save(tmp_path / "in" / f"image{suffix}", icc_profile=swapped_profile())
    pixels = only_image(tmp_path / "in", tmp_path / "out")
    assert np.abs(pixels.astype(int) - COLOR[::-1]).max() <= 2


def test_grey_profiles_convert_grey_pictures_with_and_without_opacity(tmp_path):
    """The profile is after ICC.1:2010; its curve has no entries, so values are proportional to light."""
    curve = b"curv" + bytes(4) + (0).to_bytes(4, "big")
    white = b"XYZ " + bytes(4) + b"".join(v.to_bytes(4, "big") for v in (0xF6D6, 0x10000, 0xD32D))
    start = 128 + 4 + 2 * 12
    tags = (2).to_bytes(4, "big") + b"".join(
        name + offset.to_bytes(4, "big") + size.to_bytes(4, "big")
        for name, offset, size in ((b"wtpt", start, len(white)), (b"kTRC", start + len(white), len(curve)))
    )
    body = tags + white + curve
    head = (128 + len(body)).to_bytes(4, "big") + bytes(4) + bytes([2, 0x40, 0, 0]) + b"mntrGRAYXYZ "
    head += bytes(12) + b"acsp" + bytes(28) + white[8:]
    profile = head.ljust(128, b"\0") + body
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    light = np.arange(256).reshape(16, 16) / 255
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    for mode in ("L", "LA"):
        folder = tmp_path / mode
        folder.mkdir()
        ramp.convert(mode).save(folder / "image.png", icc_profile=profile)
        pixels = only_image(folder, tmp_path / f"out{mode}", channels=1)
        # LittleCMS interpolates a table, which is coarse where the curve is steep.
        assert np.abs(pixels[1:, :, 0] - expected[1:]).max() <= 3
        assert np.abs(pixels[0, :, 0] - expected[0]).max() <= 10


@pytest.mark.parametrize("profile", [b"damaged", swapped_profile()], ids=["damaged", "of RGB"])
def test_a_profile_that_does_not_fit_is_ignored(tmp_path, profile):
    (tmp_path / "in").mkdir()
    in_mode("LA").save(tmp_path / "in/image.png", icc_profile=profile)
    pixels = only_image(tmp_path / "in", tmp_path / "out")
    assert np.abs(pixels.astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, ".png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [
        (mode, ".tif")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16")
    ]
    + [(mode, ".jpg") for mode in ("L", "RGB", "CMYK")]
    + [("RGB", ".webp"), ("RGBA", ".webp"), ("P", ".gif"), ("RGB", ".bmp"), ("L", ".pgm"), ("RGB", ".ppm")]
    + [("RGB", ".jp2"), ("RGBA", ".jp2"), ("RGB", ".avif"), ("RGB", ".dib"), ("RGB", ".jfif")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_files_of_every_kind_are_read(tmp_path, mode, suffix, channels):
    if (mode, suffix) == ("YCbCr", ".tif") and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow 12 writes a file that is too short")
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


def test_a_picture_of_many_blocks_is_converted_as_one():
    rng = np.random.default_rng(0)
    for size in [(1500, 1500), (2**21 + 5, 2)]:  # blocks of 2^20 pixels: below, and beside each other
        rgba = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4)).astype(np.uint8))
        behind = Image.new("RGBA", size, (1, 2, 3, 255))
        expected = Image.alpha_composite(behind, rgba).convert("RGB")
        assert to_rgb(rgba, (1, 2, 3)).tobytes() == expected.tobytes()
    deep = rng.integers(0, 40_000, (1500, 1500)).astype(np.int32)
    deep[-1, -1] = 65_535  # white, which only the last block holds
    assert np.asarray(to_rgb(Image.fromarray(deep), WHITE))[0, 0, 0] == np.rint(deep[0, 0] / 257)


def test_formats_that_start_other_programs_or_are_no_pictures_are_named_and_not_opened(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin/gs").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    fill(tmp_path / "in", 3)
    in_mode("RGB").save(tmp_path / "in/a.eps")
    (tmp_path / "in/b.png").write_bytes((tmp_path / "in/a.eps").read_bytes())
    (tmp_path / "in/c.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (tmp_path / "in/d.pdf").write_bytes(b"%PDF-1.7")
    (tmp_path / "in/e.svg").write_text('<?xml version="1.0"?>\n<svg/>')
    Image.new("RGB", (16, 16)).save(tmp_path / "in/f.pcx")
    _, _, dataset = run(config("folder", tmp_path / "in", max_bad_fraction=0.9), tmp_path / "out")
    kinds = ("EPS", "EPS", "HEIC", "PDF", "SVG")
    assert [file["reason"] for file in dataset["bad_files"]] == [
        *(f"{kind} cannot be read: convert it to PNG" for kind in kinds),
        "not an image file",
    ]
    assert not (tmp_path / "started").exists()


PEAK = """
import re, sys
from functools import partial
from glann.prepare.settings import Prepare
from pathlib import Path
from glann.prepare.reading import RowsOf, decode_all, decode_file
path = sys.argv[1]
def square(folder, name):
    if name.endswith(".npy"):
        decode, item = RowsOf(f"{folder}/{name}"), 0
    else:
        decode, item = partial(decode_file, root=folder.encode()), name.encode()
    (pixels,) = decode_all([item], decode, Prepare(resolution=1024, fit="pad"))
    assert not isinstance(pixels, str), pixels
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
folder, name = path.rsplit("/", 1)
print(-square(folder, "small" + name) + square(folder, name))  # the libraries are loaded by the small one
"""

LARGE = {
    "turned.png": ("RGBA", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
    "deep.png": ("I;16", {}),
    "deep.tif": ("I", {}),
    "float.tif": ("F", {}),
    "lossless.webp": ("RGBA", {"lossless": True, "quality": 0, "method": 0}),
    "a.avif": ("RGBA", {"speed": 10, "subsampling": "4:4:4"}),
    "a.jp2": ("RGBA", {}),
    "progressive.jpg": ("CMYK", {"progressive": True, "subsampling": 0}),
    "double.npy": ("RGBA", {}),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_picture_takes_more_memory_than_is_reckoned_with(tmp_path, name):
    mode, options = LARGE[name]
    for prefix, size in (("small", (32, 32)), ("", (1500, 2000))):
        content = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 4)).astype(np.uint8)
        if name.endswith(".npy"):
            np.save(tmp_path / f"{prefix}{name}", content[None] / 255)
            continue
        if mode in DEEP:
            picture = Image.fromarray(content[..., 0].astype(DEEP[mode]))
        else:
            picture = Image.fromarray(content).convert("RGB").convert(mode)
        picture.save(tmp_path / f"{prefix}{name}", **options)
    arguments = [sys.executable, "-c", PEAK, f"{tmp_path}/{name}"]
    taken = int(subprocess.run(arguments, capture_output=True, check=True, text=True).stdout)
    mapped = (1500 * 2000 * 4 * 8) * name.endswith(".npy")  # pages of the file, which are given up
    assert taken - mapped < BYTES_PER_PIXEL * 1500 * 2000
