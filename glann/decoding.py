"""Whatever a picture is, it becomes uint8 [size, size, channels]."""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from glann.config import Prepare

Pixels = NDArray[np.uint8]
Decode = Callable[[Any, Prepare], Image.Image]


def decode_all(items: Sequence[Any], decode: Decode, config: Prepare) -> list[Pixels | str]:
    """Return for each item its pixels, uint8 [size, size, channels], or the reason why there are none."""
    return [_pixels_or_reason(decode, item, config) for item in items]


def _pixels_or_reason(decode: Decode, item: Any, config: Prepare) -> Pixels | str:
    try:
        return square(decode(item, config), config)
    except Exception as error:  # decoders raise anything at all on damaged files
        return _reason(error)


def _reason(error: Exception) -> str:
    """Say what is wrong with a file, without its path: the list is the same wherever the folder lies."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def decode_file(
    name: bytes, config: Prepare, root: bytes, box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """Read the file `name` under `root`: upright, its first frame, cut to `box`."""
    path = os.path.join(root, name)  # noqa: PTH118 (pathlib has no bytes)
    if os.stat(path).st_size == 0:  # noqa: PTH116
        raise ValueError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no harm
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as picture:  # the size is checked here, before anything is decoded
            if box is None:
                # A JPEG can be decoded at a half, quarter or eighth of its size, which is that much faster.
                picture.draft(None, (2 * config.resolution, 2 * config.resolution))
            picture.load()
        with suppress(Exception):  # the pixels may be sound where the EXIF block is not
            return ImageOps.exif_transpose(picture).crop(box)
        return picture.crop(box)


def decode_row(row: NDArray[Any], config: Prepare) -> Image.Image:
    """Make a picture of an array: uint8, or float in 0 to 1; [h, w] or [h, w, c] with c = 1, 3 or 4."""
    if row.dtype.kind == "f":
        if not (row.min() >= 0 and row.max() <= 1):  # false for NaN too
            raise ValueError(f"values from {row.min():g} to {row.max():g}, outside 0 to 1")
        row = np.rint(row.astype(np.float64) * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(row[..., 0] if row.shape[2:] == (1,) else row))


def square(picture: Image.Image, config: Prepare) -> Pixels:
    """Crop or pad to a square, resize, and convert to grey or RGB.

    Returns
    -------
    Pixels
        uint8 [size, size, channels].
    """
    background = (config.background[0], config.background[1], config.background[2])
    rgb = to_rgb(picture, background)
    size, lanczos = (config.resolution, config.resolution), Image.Resampling.LANCZOS
    if config.fit == "crop":
        rgb = ImageOps.fit(rgb, size, lanczos)
    else:
        rgb = ImageOps.pad(rgb, size, lanczos, color=background)
    pixels = np.asarray(rgb if config.channels == 3 else rgb.convert("L"))
    return pixels.reshape(config.resolution, config.resolution, config.channels)


def to_rgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert a picture of any mode to RGB, with `background` behind its transparent pixels."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
        assert converted is not None  # None only where it converts in place
        return converted
    if picture.has_transparency_data:
        # Composited before resizing: the hidden colour of transparent pixels must not bleed into the edges.
        rgba = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        behind = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(behind, rgba).convert("RGB")
    return picture.convert("RGB")


def _to_8_bits(values: NDArray[Any]) -> Pixels:
    """Scale 16-bit, 32-bit and float grey values [h, w] to 0 to 255.

    Only 16-bit files say which value is white; for the others it is the first of 1, 255, 65535 and 2^31 - 1
    that no pixel exceeds.
    """
    if not np.isfinite(values).all():
        raise ValueError("pixels that are not finite numbers")
    ranges = (65535,) if values.dtype.itemsize == 2 else (1, 255, 65535, 2**31 - 1)
    white = next((white for white in ranges if values.max() <= white), values.max())
    return np.rint(values.clip(0, white) * (255.0 / white)).astype(np.uint8)
