"""A source of images, and what sources are made of: files and rows of arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from glann.prepare.arrays import remedy
from glann.prepare.listing import printable
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
    class_of: Callable[[int], str] | None = None
    """returns the name of the class of item i; None: there are no classes"""


def files_of(
    names: Sequence[bytes],
    root: bytes,
    repair: str,
    box: Box | None = None,
    class_of: Callable[[int], str] | None = None,
) -> Source:
    """Make a source of files `names` below `root`; each picture is cut to `box`, if one is given."""
    decode = partial(decode_file, root=root, box=box)
    return Source(names, decode, lambda i: printable(names[i]), lambda _: repair, class_of=class_of)


def rows_of(array: NDArray[Any], labels: Sequence[int], names: Sequence[str]) -> Source:
    """Make a source of the rows of an array, [n, h, w] or [n, h, w, c], and their classes by number."""
    pixels = array.shape[1] * array.shape[2]
    return Source(
        array,
        decode_row,
        "row {}".format,
        partial(remedy, array),
        pixels,
        class_of=lambda i: names[int(labels[i])],
    )
