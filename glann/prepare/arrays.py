"""Arrays given as images: checks of their shape, size and values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glann.errors import GlannError
from glann.prepare.reading import MOST_PIXELS, MOST_SIDE
from glann.prepare.settings import Prepare
from glann.runtime.npy import load_npy

LOOKED_AT = 16  # rows whose values are checked; they stand for all rows
EXPECTED = "expected uint8, or float from 0 to 1"


def open_images(config: Prepare) -> NDArray[Any]:
    """Map the .npy file that `config` names: [n, h, w] or [n, h, w, c], uint8 or float.

    Raises
    ------
    GlannError
        If it is something else, or if most of the rows that are checked have values outside 0 to 1. Then it
        is not single images that are wrong: the whole array has other units.
    """
    path = config.path
    if Path(path).is_dir():
        raise GlannError(
            f"prepare.path: {path}: a folder; name an .npy file, or set prepare.source to folder"
        )
    try:
        array = load_npy(path, mmap=True)
    except GlannError as error:
        written = "; write one with numpy.save" if Path(path).is_file() else ""
        raise GlannError(f"prepare.path: {error}{written}") from None
    except OSError as error:
        raise GlannError(f"prepare.path: {path}: {error.strerror or error}; make it readable") from None
    _check_shape(array, path)
    rows = _spread(array, range(len(array)))
    if array.dtype != np.uint8 and (array.dtype.kind != "f" or array.itemsize > 8):
        converted = "array.astype('float32')" if array.dtype.kind == "f" else _in_units(rows)
        raise GlannError(f"prepare.path: {path} is {array.dtype}; {EXPECTED}: save {converted}")
    outside = 0 if array.dtype == np.uint8 else sum(not (row.min() >= 0 and row.max() <= 1) for row in rows)
    if outside and outside >= len(rows) * max(0.5, config.max_bad_fraction):
        raise GlannError(f"prepare.path: {path} has {_range(rows)}; {EXPECTED}: save {_in_units(rows)}")
    return array


def open_labels(config: Prepare, images: int) -> NDArray[Any] | None:
    """Read the file of labels that `config` names, integers [n], or return None if it names none.

    Raises
    ------
    GlannError
        If it is something else, or if there is not one for each of `images` images.
    """
    if config.labels is None:
        return None
    try:
        labels = load_npy(config.labels)
    except GlannError as error:
        raise GlannError(f"prepare.labels: {error}") from None
    except OSError as error:
        raise GlannError(f"prepare.labels: {config.labels}: {error.strerror or error}") from None
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise GlannError(
            f"prepare.labels: {config.labels} is {labels.dtype} {list(labels.shape)}; expected integers "
            f"[{images}], one for each image of prepare.path"
        )
    return labels


def remedy(array: NDArray[Any], bad: Sequence[int]) -> str:
    """Say what to do about bad rows, if they are too few to tell whether the whole array has other units."""
    rows = _spread(array, bad)
    whole = f", or save {_in_units(rows)} if the whole array is like this" * (array.dtype.kind == "f")
    return f"remove or repair them{whole}"


def _check_shape(array: NDArray[Any], path: str) -> None:
    shape = list(array.shape)
    if array.ndim not in (3, 4) or shape[3:] not in ([], [1], [3], [4]) or 0 in shape[1:]:
        moved = "; save numpy.moveaxis(array, 1, -1)" * (array.ndim == 4 and shape[1] in (1, 3, 4))
        raise GlannError(
            f"prepare.path: {path} has the shape {shape}; "
            f"expected [n, h, w] or [n, h, w, c] with c = 1, 3 or 4{moved}"
        )
    height, width = shape[1:3]
    if height * width > MOST_PIXELS or max(height, width) > MOST_SIDE:
        raise GlannError(
            f"prepare.path: {path} has images of {height} x {width} pixels; at most {MOST_PIXELS:,} pixels, "
            f"and {MOST_SIDE:,} per side, can be read: make them smaller"
        )


def _spread(array: NDArray[Any], rows: Sequence[int]) -> list[NDArray[Any]]:
    few = np.linspace(0, len(rows) - 1, min(len(rows), LOOKED_AT)).astype(int)
    return [array[rows[i]] for i in few]


def _extremes(rows: Sequence[NDArray[Any]]) -> tuple[float, float]:
    if not rows:
        return 0, 0
    return float(np.min([row.min() for row in rows])), float(np.max([row.max() for row in rows]))


def _range(rows: Sequence[NDArray[Any]]) -> str:
    low, high = _extremes(rows)
    return f"values from {low:g} to {high:g}" if np.isfinite([low, high]).all() else "NaN or infinite values"


def _in_units(rows: Sequence[NDArray[Any]]) -> str:
    """Return a numpy expression that scales an array with rows like these to 0 to 1."""
    low, high = _extremes(rows)
    if not np.isfinite([low, high]).all():
        return "numpy.nan_to_num(array), scaled to 0 to 1"
    integers = bool(rows) and rows[0].dtype.kind != "f"
    if low >= -0.01 and high <= 1.01:
        return "array.astype('float32')" if integers else "numpy.clip(array, 0, 1)"
    if low >= -1 and high <= 1:
        return "(array + 1) / 2"
    if low >= 0 and 25 < high <= 255:  # if the maximum is lower, white is hardly 255
        return "array.astype('uint8')" if integers else "array / 255"
    if low >= 0 and 2**12 < high <= 65535:
        return "array / 65535"
    return "(array - array.min()) / (array.max() - array.min())"
