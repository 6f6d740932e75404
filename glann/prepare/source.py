"""A source of images, and what sources are made of: files and rows of arrays."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from glann.prepare.arrays import remedy
from glann.prepare.reading import MOST_PIXELS, Box, Decode, decode_file, decode_row


@dataclass(frozen=True)
class Source:
    """Images that have been found but not decoded."""

    items: Sequence[Any] | NDArray[Any]
    """one item per image, in an order that depends only on the images"""
    decode: Decode
    """turns an item into a picture; can be sent to another process"""
    name: Callable[[int], str]
    """returns the name of item i for messages"""
    remedy: Callable[[Sequence[int]], str]
    """says what to do about items that cannot be used, given by number"""
    pixels: int = MOST_PIXELS
    """largest number of pixels of an item"""
    in_random_order: bool = False
    """whether the items need no shuffling"""


def files_of(names: Sequence[bytes], root: bytes, repair: str, box: Box | None = None) -> Source:
    """Make a source of files `names` below `root`; each picture is cut to `box`, if one is given."""
    decode = partial(decode_file, root=root, box=box)
    return Source(names, decode, lambda i: printable(names[i]), lambda _: repair)


def rows_of(array: NDArray[Any]) -> Source:
    """Make a source of the rows of an array: [n, h, w] or [n, h, w, c]."""
    pixels = array.shape[1] * array.shape[2]
    return Source(array, decode_row, "row {}".format, partial(remedy, array), pixels)


def names_in(root: bytes) -> list[bytes]:
    """List the files below `root`, sorted by the bytes of their relative path.

    Linked files count; linked folders do not, since they may lead in circles. Dangling links and unreadable
    folders are listed too, so that decoding says what is wrong with them.
    """
    root = os.path.join(root, b"")  # noqa: PTH118 (pathlib has no bytes)
    paths: list[bytes] = []
    unreadable: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(b".")]
        inside = (os.path.join(folder, name) for name in names if not name.startswith(b"."))  # noqa: PTH118
        # Pipes, sockets and devices are not files; opening one may block forever.
        paths += (path for path in inside if os.path.isfile(path) or not os.path.exists(path))  # noqa: PTH110, PTH113
    paths += (error.filename for error in unreadable)
    return sorted(path.removeprefix(root) for path in paths)


def printable(name: bytes) -> str:
    """Turn a file name, which may be any bytes, into one line of text."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
