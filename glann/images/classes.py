"""The classes of images: their names, and to which of them each image belongs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glann.errors import DamagedFileError, GlannError
from glann.runtime.files import load_json, save_json


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
        names = [str(name) for name in stored["names"]]
        found = Classes(names, *(np.array(stored[key], np.int64) for key in ("images", "holdout")))
        rows = np.concatenate([found.images, found.holdout])
        if rows.ndim != 1 or ((rows < 0) | (rows >= len(names))).any():
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DamagedFileError(path, "holds no classes") from None
    return found


def needed(classes: Classes | None) -> Classes:
    """Return classes that a conditional mapping can be fitted to.

    Raises
    ------
    GlannError
        If there are none, or if one of them has no training image.
    """
    if classes is None:
        raise GlannError(
            "imle.conditional: the images have no classes; put the pictures of each class into a subfolder "
            "of prepare.path, or name a file of labels in prepare.labels"
        )
    for i, count in enumerate(np.bincount(classes.images, minlength=len(classes.names))):
        if not count:
            raise GlannError(
                f"imle.conditional: {classes.names[i][:60]} has no training image; add pictures of it, lower "
                "prepare.holdout, or remove it"
            )
    return classes
