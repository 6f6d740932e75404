"""Reading pictures: files and rows of arrays become uint8 [size, size, channels]."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from glann.prepare.settings import Prepare

Pixels = NDArray[np.uint8]
Decode = Callable[[Any, Prepare], Image.Image]
Box = tuple[int, int, int, int]  # left, top, right, bottom

# Pillow reads more formats, some by starting other programs (Ghostscript for EPS). MPO counts as JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF")
UNREAD = {
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "PSD": rb"8BPS",
    "HEIC": rb"....ftyp(hei|hev|mif1)",
    "SVG": rb"\s*(<\?xml.*)?<svg",
}
MOST_PIXELS = 89_478_485  # per file (Pillow's limit) and per row
MOST_SIDE = 2**20  # pixels; for longer sides, what Pillow stores per row adds up
BYTES_PER_PIXEL = 25  # the most memory that `square` takes (a test measures it)
BLOCK = 2**20  # pixels converted at once


def decode_all(items: Sequence[Any], decode: Decode, config: Prepare) -> list[Pixels | str]:
    """Return each item's pixels, uint8 [size, size, channels], or the reason why it cannot be used."""
    return [_pixels_or_reason(decode, item, config) for item in items]


def _pixels_or_reason(decode: Decode, item: Any, config: Prepare) -> Pixels | str:
    try:
        return square(decode(item, config), config)
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        return _reason(error)


def _reason(error: Exception) -> str:
    """Say what is wrong with a file, without its path, so that dataset.json does not depend on the folder."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def decode_file(name: bytes, config: Prepare, root: bytes, box: Box | None = None) -> Image.Image:
    """Read the file `name` under `root`: its first frame, upright, cropped to `box`."""
    path = os.path.join(root, name)  # noqa: PTH118 (pathlib has no bytes)
    if os.stat(path).st_size == 0:  # noqa: PTH116
        raise ValueError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata does no harm
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            # The size is checked here, before anything is decoded.
            picture = Image.open(path, formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(_unread(path)) from None
        with picture:
            if 0 in picture.size:
                raise ValueError("no pixels")
            if max(picture.size) > MOST_SIDE:
                raise ValueError(f"a side of {max(picture.size)} pixels; at most {MOST_SIDE} can be read")
            if box is None:
                # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which is faster.
                picture.draft(None, (2 * config.resolution, 2 * config.resolution))
            picture.load()
        with suppress(Exception):  # the pixels may be fine even if the EXIF block is not
            ImageOps.exif_transpose(picture, in_place=True)
        return picture.crop(box) if box else picture


def _unread(path: bytes) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(1000)
    found = next((kind for kind, start in UNREAD.items() if re.match(start, head, re.DOTALL)), None)
    return f"{found} cannot be read: convert it to PNG" if found else "not an image file"


class RowsOf:
    """Decodes rows of an .npy file, given by number.

    Each process maps the file itself, so rows, which may be large, are never sent between processes.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._array: NDArray[Any] | None = None

    def __reduce__(self) -> tuple[type["RowsOf"], tuple[str]]:
        return RowsOf, (self._path,)

    def __call__(self, i: int, config: Prepare) -> Image.Image:
        """Return row `i` as a picture."""
        if self._array is None:
            self._array = np.load(self._path, mmap_mode="r", allow_pickle=False)
        return decode_row(self._array[i], config)


def decode_row(row: NDArray[Any], config: Prepare) -> Image.Image:
    """Turn an array into a picture: uint8, or float from 0 to 1; [h, w] or [h, w, c] with c = 1, 3 or 4."""
    if row.dtype.kind == "f":
        low, high = row.min(), row.max()
        if not (low >= 0 and high <= 1):  # false for NaN too
            raise ValueError(f"values from {low:g} to {high:g}, outside 0 to 1")
        row = _to_uint8(row)
    return Image.fromarray(np.ascontiguousarray(row[..., 0] if row.shape[2:] == (1,) else row))


def _to_uint8(row: NDArray[np.floating[Any]]) -> Pixels:
    """Return round(255 * row), computed in float64 and in blocks."""
    pixels = np.empty(row.shape, np.uint8)
    blocks = np.nditer(
        [row, pixels],
        ["external_loop", "buffered"],
        [["readonly"], ["writeonly"]],
        op_dtypes=[np.float64, np.uint8],
        buffersize=BLOCK,
    )
    with blocks:
        for values, block in blocks:
            block[...] = np.rint(values * 255)
    return pixels


def square(picture: Image.Image, config: Prepare) -> Pixels:
    """Crop or pad to a square, resize, and convert to grey or RGB.

    Returns
    -------
    Pixels
        uint8 [size, size, channels].
    """
    background = (config.background[0], config.background[1], config.background[2])
    rgb = to_rgb(picture, background)
    del picture  # large, and no longer needed
    size, lanczos = (config.resolution, config.resolution), Image.Resampling.LANCZOS
    if config.fit == "crop":
        rgb = ImageOps.fit(rgb, size, lanczos)
    else:
        rgb = ImageOps.pad(rgb, size, lanczos, color=background)
    pixels = np.asarray(rgb if config.channels == 3 else rgb.convert("L"))
    return pixels.reshape(config.resolution, config.resolution, config.channels)


def to_rgb(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert a picture of any mode to RGB, with `background` behind its transparent pixels."""
    managed = _profile(picture)
    if picture.mode == "RGB" and not picture.has_transparency_data and managed is None:
        return picture
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        convert = partial(_grey_to_rgb, white=_white(picture))
    else:
        convert = partial(_block_to_rgb, background=background, profile=managed)
    # In blocks: the steps on the way would each take as much memory as the picture.
    rgb = Image.new("RGB", picture.size)
    for box in _blocks(picture):
        rgb.paste(convert(picture.crop(box)), box)
    return rgb


def _blocks(picture: Image.Image) -> Iterator[Box]:
    width = min(picture.width, BLOCK)
    height = max(1, BLOCK // width)
    for top in range(0, picture.height, height):
        for left in range(0, picture.width, width):
            yield left, top, min(left + width, picture.width), min(top + height, picture.height)


def _profile(picture: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """Return the colour profile that a picture brings along, unless it is damaged or that of sRGB."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(picture.info["icc_profile"]))
        name = ImageCms.getProfileDescription(profile)
    except (KeyError, TypeError, OSError, ImageCms.PyCMSError):
        return None
    return None if name.startswith("sRGB") else profile


def _in_srgb(picture: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """Convert colours from `profile`; if the profile belongs to another mode, leave them as they are."""
    opacity = None
    if picture.has_transparency_data:
        grey = picture.mode in ("L", "LA", "La")
        picture = picture.convert("LA" if grey else "RGBA")
        opacity = picture.getchannel("A")
        picture = picture.convert("L" if grey else "RGB")
    elif picture.mode == "P":
        picture = picture.convert("RGB")
    try:
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, profile, srgb, outputMode="RGB") or picture
    except ImageCms.PyCMSError:
        converted = picture
    if opacity is not None:
        converted = converted.convert("RGB")
        converted.putalpha(opacity)
    return converted


def _block_to_rgb(
    picture: Image.Image, background: tuple[int, int, int], profile: ImageCms.ImageCmsProfile | None
) -> Image.Image:
    if profile:
        picture = _in_srgb(picture, profile)
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


def _white(picture: Image.Image) -> Any:
    """Return the value that is white in a picture of 16-bit, 32-bit or float grey values.

    Only 16-bit files say which that is; for the others it is the first of 1, 255, 65535 and 2^31 - 1 that no
    pixel exceeds.
    """
    largest = []
    for box in _blocks(picture):
        values = np.asarray(picture.crop(box))
        if not np.isfinite(values).all():
            raise ValueError("pixels that are not finite numbers")
        largest.append(values.max())
    ranges = (65535,) if values.dtype.itemsize == 2 else (1, 255, 65535, 2**31 - 1)
    return next((white for white in ranges if max(largest) <= white), max(largest))


def _grey_to_rgb(picture: Image.Image, white: Any) -> Image.Image:
    values = np.asarray(picture).clip(0, white) * (255.0 / white)
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
