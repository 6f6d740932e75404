"""The classes of images: their names, and to which of them each image belongs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glann.errors import DamagedFileError, GlannError
from glann.runtime.files import load_json, save_json

REMEDIES = {
    "folder": "put the pictures of each class into a subfolder of prepare.path, and none beside these",
    "npy": "name a file of labels in prepare.labels",
}
"""How to get classes, by prepare.source."""


@dataclass(frozen=True)
class Classes:
    """Classes of the prepared images.

    Attributes
    ----------
    names
        Their names, in the order of their numbers.
    images, holdout
        int64 [n] and [m]: the number of the class of each training and hold-out image.
    """

    names: list[str]
    images: NDArray[np.int64]
    holdout: NDArray[np.int64]


def numbered(images: Sequence[str], holdout: Sequence[str]) -> Classes:
    """Number the classes of training and hold-out images, which are given by name, in alphabetical order."""
    names = in_order({*images, *holdout})
    number = {name: i for i, name in enumerate(names)}
    both = (np.array([number[name] for name in given], np.int64) for given in (images, holdout))
    return Classes(names, *both)


def in_order(names: Iterable[str]) -> list[str]:
    """Sort the names of classes; numbers come first, by their value."""
    return sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def save_classes(path: Path, classes: Classes | None) -> None:
    """Write classes as JSON, or null if there are none."""
    save_json(
        path,
        classes
        and {
            "names": classes.names,
            "images": classes.images.tolist(),
            "holdout": classes.holdout.tolist(),
        },
    )


def load_classes(path: str | Path) -> Classes | None:
    """Read a file of `save_classes`.

    Raises
    ------
    GlannError
        If the file is missing or damaged.
    """
    stored = load_json(path)
    if stored is None:
        return None
    try:
        names, both = stored["names"], [stored["images"], stored["holdout"]]
        if not isinstance(names, list) or len({*names}) != len(names):
            raise ValueError
        if any(type(label) is not int for labels in both for label in labels):
            raise ValueError
        found = Classes([str(name) for name in names], *(np.array(labels, np.int64) for labels in both))
        rows = np.concatenate([found.images, found.holdout])
        if ((rows < 0) | (rows >= len(names))).any():
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DamagedFileError(path, "holds no classes") from None
    return found


def needed(classes: Classes | None, source: str) -> Classes:
    """Return classes that a conditional mapping can be fitted to; `source` is prepare.source.

    Raises
    ------
    GlannError
        If there are none, or if one of them has no training image.
    """
    if classes is None:
        remedy = REMEDIES.get(source, "set it to false, or use another prepare.source")
        raise GlannError(f"imle.conditional: the images have no classes; {remedy}")
    for i, count in enumerate(np.bincount(classes.images, minlength=len(classes.names))):
        if not count:
            raise GlannError(
                f"imle.conditional: class {classes.names[i][:60]!r} has no training image; add some, lower "
                "prepare.holdout, or remove it"
            )
    return classes
