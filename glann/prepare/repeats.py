"""Pictures that are there twice: the same picture again, or resized, compressed or brightened."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glann.images.html import figure, png, write_html
from glann.prepare.likeness import Likeness, likeness, shrunk
from glann.prepare.reading import Pixels
from glann.runtime.progress import progress

ALIKE = 0.98  # correlation of two reduced pictures from which on they count as the same
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

    Parameters
    ----------
    holdout, training
        How many there will be of both.
    mirror
        Whether a training picture is also trained on mirrored; then its mirror image must not repeat a
        held-out one either.

    Attributes
    ----------
    left_out
        Training pictures that repeat a held-out one. `row` counts them, `of_row` the held-out ones.
    among_training
        Training pictures that repeat an earlier one, filled by `compare`. Both rows count training pictures.
    shown
        Of the first that are left out, which no file has: their pixels, at most 128 px.
    """

    def __init__(self, holdout: int, training: int, mirror: bool) -> None:
        self.left_out: list[Repeat] = []
        self.among_training: list[Repeat] = []
        self.shown: list[Pixels] = []
        self._ways = 2 if mirror else 1
        self._held_out = _Table(holdout * self._ways)
        self._training = _Table(min(training, MOST_COMPARED))

    def hold_out(self, name: str, pixels: Pixels, like: Likeness) -> None:
        """Note a picture, uint8 [size, size, c], that is held out."""
        self._held_out.append(name, like)
        if self._ways == 2:
            self._held_out.append(name, likeness(pixels[:, ::-1]))

    def leaves_out(self, name: str, pixels: Pixels, like: Likeness) -> bool:
        """Return whether a picture for training, uint8 [size, size, c], repeats a held-out one; note it."""
        found = self._held_out.same(like)
        if found is None:
            self._training.append(name, like)
            return False
        row = len(self.left_out)
        self.left_out.append(Repeat(name, self._held_out.names[found], row, found // self._ways))
        if row < SHOWN:
            self.shown.append(shrunk(pixels, SHOWN_SIDE))
        return True

    def compare(self) -> None:
        """Compare training pictures with each other: the first `MOST_COMPARED`."""
        names, rows = self._training.names, self._training.rows
        with progress("prepare: repeats", len(names), "images") as advance:
            for start in range(0, len(names), COMPARED_AT_ONCE):
                block = rows[start : start + COMPARED_AT_ONCE]
                earlier = np.tril(block @ rows[: start + len(block)].T, start - 1)
                for i, nearest in enumerate(earlier.argmax(axis=1)):
                    row, of = start + i, self._training.first_copy(start + i)
                    if of == row and earlier[i, nearest] >= ALIKE:
                        of = int(nearest)
                    if of < row:
                        self.among_training.append(Repeat(names[row], names[of], row, of))
                advance(len(block))

    def named(self) -> dict[str, list[dict[str, str]]]:
        """Return the names of all pairs."""
        kinds = {"left_out": self.left_out, "among_training": self.among_training}
        return {kind: [{"name": r.name, "of": r.of} for r in found] for kind, found in kinds.items()}


class _Table:
    """Names of pictures and what they are compared by, as many as fit."""

    def __init__(self, most: int) -> None:
        self.names: list[str] = []
        self._most = most
        self._rows = np.empty((0, 0), np.float32)
        self._digests: list[bytes] = []
        self._first: dict[bytes, int] = {}

    def append(self, name: str, like: Likeness) -> None:
        row = len(self.names)
        if row == self._most:
            return
        if row == 0:
            self._rows = np.empty((self._most, len(like.reduced)), np.float32)
        self._rows[row] = like.reduced
        self.names.append(name)
        self._digests.append(like.digest)
        self._first.setdefault(like.digest, row)

    @property
    def rows(self) -> NDArray[np.float32]:
        """Reduced pictures, [n, f]."""
        return self._rows[: len(self.names)]

    def same(self, like: Likeness) -> int | None:
        """Return the row of a picture that counts as the same, or None."""
        if (exact := self._first.get(like.digest)) is not None:
            return exact
        products = self.rows @ like.reduced
        row = int(products.argmax())
        return row if products[row] >= ALIKE else None

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
        out = [(repeats.shown[r.row], holdout[r.of_row]) for r in repeats.left_out[:SHOWN]]
        kept = [(train[r.row], train[r.of_row]) for r in repeats.among_training[:SHOWN]]
        limit = f", among the first {MOST_COMPARED:,}" * (len(train) > MOST_COMPARED)
        body += [
            f"<h2>Left out, since they repeat a held-out picture: {len(repeats.left_out):,}</h2>",
            _pairs(repeats.left_out, out),
            f"<h2>Trained on although they repeat another one{limit}: {len(repeats.among_training):,}</h2>",
            _pairs(repeats.among_training, kept),
        ]
    body.append(f"<p>At most {SHOWN} of each kind are shown; dataset.json and repeats.json name all.</p>")
    write_html(path, "prepare: skipped and repeated pictures", body)


def _pairs(repeats: Sequence[Repeat], pictures: Sequence[tuple[Pixels, Pixels]]) -> str:
    shown: list[str] = []
    for repeat, pair in zip(repeats, pictures, strict=False):
        both = [shrunk(pixels, SHOWN_SIDE) for pixels in pair]
        shown.append(figure(repeat.name, png(np.concatenate(both, axis=1)), f"{repeat.name} = {repeat.of}"))
    return f'<div class="pairs">{"".join(shown)}</div>'
