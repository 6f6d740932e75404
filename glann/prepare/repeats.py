"""Pictures that are there twice: the same picture again, or resized, compressed or brightened."""

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from glann.images.html import figure, png, write_html
from glann.images.png import as_picture
from glann.images.tensors import thumbnails
from glann.prepare.reading import Pixels
from glann.runtime.progress import progress

SIDE = 16  # px to which pictures are reduced before they are compared
ALIKE = 0.98  # correlation of two reduced pictures from which on they count as the same
FLAT = 1 / 255  # standard deviation of the values up to which only an exact copy counts as the same
MOST_COMPARED = 50_000  # training pictures that are compared with each other; the time grows with the square
COMPARED_AT_ONCE = 1024
SHOWN = 60  # pairs of each kind, and names of skipped files
SHOWN_SIDE = 128  # px


class Repeat(NamedTuple):
    """A picture that repeats one that came earlier."""

    name: str
    of: str
    row: int
    """of its pixels: see `Repeats`"""
    of_row: int


class Repeats:
    """Compares pictures in the order in which they come: those held out first, then those for training.

    Attributes
    ----------
    left_out
        Training pictures that repeat a held-out one. `row` counts them, `of_row` the held-out ones.
    among_training
        Training pictures that repeat an earlier one, filled by `compare`. Both rows count training pictures.
    """

    def __init__(self, holdout: int, training: int, mirror: bool) -> None:
        self.left_out: list[Repeat] = []
        self.among_training: list[Repeat] = []
        self.pixels: list[Pixels] = []  # of the first that are left out; no file has them
        self._held_out = _Table(holdout)
        self._training = _Table(min(training, MOST_COMPARED))
        self._mirror = mirror

    def hold_out(self, name: str, pixels: Pixels) -> None:
        """Note a picture, uint8 [size, size, c], that is held out."""
        self._held_out.append(name, pixels, _reduced(pixels))

    def leaves_out(self, name: str, pixels: Pixels) -> bool:
        """Return whether a picture for training, uint8 [size, size, c], repeats a held-out one; note it.

        With mirror images, it counts too if its mirror image, which would be trained on, repeats one.
        """
        reduced = _reduced(pixels)
        of_row = self._held_out.same(pixels, reduced)
        if of_row is None and self._mirror:
            mirrored = np.ascontiguousarray(pixels[:, ::-1])
            of_row = self._held_out.same(mirrored, _reduced(mirrored))
        if of_row is None:
            self._training.append(name, pixels, reduced)
            return False
        row = len(self.left_out)
        self.left_out.append(Repeat(name, self._held_out.names[of_row], row, of_row))
        if row < SHOWN:
            self.pixels.append(pixels)
        return True

    def compare(self) -> None:
        """Compare training pictures with each other: the first `MOST_COMPARED`."""
        names, rows = self._training.names, self._training.rows
        with progress("prepare: repeats", len(names), "images") as advance:
            for start in range(0, len(names), COMPARED_AT_ONCE):
                block = rows[start : start + COMPARED_AT_ONCE]
                earlier = (block @ rows[: start + len(block)].T).tril(diagonal=start - 1)
                likeness, nearest = earlier.max(dim=1)
                for row, alike, of_row in zip(
                    range(start, len(names)), (likeness >= ALIKE).tolist(), nearest.tolist(), strict=False
                ):
                    first = self._training.first_copy(row)
                    if first < row or alike:
                        of = first if first < row else of_row
                        self.among_training.append(Repeat(names[row], names[of], row, of))
                advance(len(block))

    def named(self) -> dict[str, list[dict[str, str]]]:
        """Return the names of all pairs, for dataset.json."""
        kinds = {"left_out": self.left_out, "among_training": self.among_training}
        return {kind: [{"name": r.name, "of": r.of} for r in found] for kind, found in kinds.items()}


class _Table:
    """Pictures: their names, digests and reduced forms, as many as fit."""

    def __init__(self, most: int) -> None:
        self.names: list[str] = []
        self._most = most
        self._rows = torch.empty(0)
        self._digests: list[bytes] = []
        self._first: dict[bytes, int] = {}

    def append(self, name: str, pixels: Pixels, reduced: Tensor) -> None:
        row = len(self.names)
        if row == self._most:
            return
        if row == 0:
            self._rows = torch.empty(self._most, len(reduced))
        self._rows[row] = reduced
        self.names.append(name)
        self._digests.append(_digest(pixels))
        self._first.setdefault(self._digests[-1], row)

    @property
    def rows(self) -> Tensor:
        """Reduced pictures, float32 [n, f]."""
        return self._rows[: len(self.names)]

    def same(self, pixels: Pixels, reduced: Tensor) -> int | None:
        """Return the row of a picture that counts as the same, or None."""
        exact = self._first.get(_digest(pixels))
        if exact is not None:
            return exact
        likeness, row = (self.rows @ reduced).max(dim=0)
        return int(row) if likeness >= ALIKE else None

    def first_copy(self, row: int) -> int:
        """Return the first row with exactly the pixels of this row."""
        return self._first[self._digests[row]]


def write_review(
    path: Path,
    skipped: Sequence[Mapping[str, str]],
    repeats: Repeats | None,
    train: Pixels,
    holdout: Pixels,
) -> None:
    """Write an html page with what was skipped and what is there twice.

    Parameters
    ----------
    path
        The html file.
    skipped
        Name and reason of each file that cannot be used.
    repeats
        What is there twice. None: this was not looked for.
    train, holdout
        uint8 [n, size, size, c], of which repeats count the rows.
    """
    body = [
        f"<h2>Skipped files: {len(skipped):,}</h2>",
        "<table>",
        *(f"<tr><td>{escape(f['name'])}</td><td>{escape(f['reason'])}</td></tr>" for f in skipped[:SHOWN]),
        "</table>",
    ]
    if repeats is None:
        body += ["<h2>Repeated pictures</h2>", "<p>They were not looked for (prepare.repeats, source).</p>"]
    else:
        out = [(repeats.pixels[r.row], holdout[r.of_row]) for r in repeats.left_out[:SHOWN]]
        kept = [(train[r.row], train[r.of_row]) for r in repeats.among_training[:SHOWN]]
        body += [
            f"<h2>Left out, since they repeat a held-out picture: {len(repeats.left_out):,}</h2>",
            _pairs(repeats.left_out, out),
            f"<h2>Trained on although they repeat another one: {len(repeats.among_training):,}</h2>",
            _pairs(repeats.among_training, kept),
        ]
    body.append(f"<p>At most {SHOWN} of each kind are shown; dataset.json names all.</p>")
    write_html(path, "prepare: skipped and repeated pictures", body)


def _pairs(repeats: Sequence[Repeat], pictures: Sequence[tuple[Pixels, Pixels]]) -> str:
    shown: list[str] = []
    for repeat, pair in zip(repeats, pictures, strict=False):
        both = [_small(pixels) for pixels in pair]
        shown.append(figure(repeat.name, png(np.concatenate(both, axis=1)), f"{repeat.name} = {repeat.of}"))
    return f'<div class="pairs">{"".join(shown)}</div>'


def _small(pixels: Pixels) -> Pixels:
    side = min(SHOWN_SIDE, len(pixels))
    small = as_picture(pixels).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small).reshape(side, side, -1)


def _reduced(pixels: Pixels) -> Tensor:
    """Return float32 [f] with mean 0 and length 1, so that products are correlations; zeros if flat."""
    values = thumbnails(pixels[None], SIDE)[0]
    centred = values - values.mean()
    return F.normalize(centred, dim=0) * (centred.square().mean().sqrt() > FLAT)


def _digest(pixels: Pixels) -> bytes:
    return hashlib.blake2b(pixels.data, digest_size=16).digest()
