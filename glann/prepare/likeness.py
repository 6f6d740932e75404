"""What pictures are compared by. Worker processes import this module, so it must not import torch."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glann.prepare.reading import Decode, Pixels, decode_all
from glann.prepare.settings import Prepare

SIDE = 16  # px to which pictures are reduced before they are compared
FLAT = 1.0  # standard deviation of values from 0 to 255 up to which only an exact copy counts as the same


class Likeness(NamedTuple):
    """What a picture is compared by."""

    reduced: NDArray[np.float32]
    """[side * side * c] with mean 0 and length 1, so that products are correlations; 0 if flat"""
    digest: bytes
    """of its pixels"""


class Picture(NamedTuple):
    """A picture that was read."""

    pixels: Pixels
    """uint8 [size, size, c]"""
    like: Likeness | None
    """None: it is not to be compared"""


def read_all(
    items: Sequence[Any], decode: Decode, config: Prepare, compared: bool = False
) -> list[Picture | str]:
    """Return each item's picture, or the reason why it cannot be used; with what it is `compared` by."""
    return [
        found if isinstance(found, str) else Picture(found, likeness(found) if compared else None)
        for found in decode_all(items, decode, config)
    ]


def likeness(pixels: Pixels) -> Likeness:
    """Return what a picture, uint8 [size, size, c], is compared by."""
    values = shrunk(pixels, SIDE).astype(np.float32).reshape(-1)
    values -= values.mean()
    reduced = values / max(float(np.linalg.norm(values)), 1e-9) * (values.std() > FLAT)
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
    return Likeness(reduced.astype(np.float32), digest)


def shrunk(pixels: Pixels, side: int) -> Pixels:
    """Average a picture, uint8 [size, size, c], down to `side` px or less."""
    side = min(side, len(pixels))
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX)).reshape(side, side, -1)
