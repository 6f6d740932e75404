"""Images as PNG files: grids, single images, labelled rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glann.runtime.files import replacing

Z_HUFFMAN_ONLY = 2  # as zlib.h numbers it
GAP = 2  # white pixels between the images of a grid
LONGEST_LABEL = 40  # letters


def grid(images: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Lay images out row by row on white.

    Parameters
    ----------
    images
        uint8 [n, h, w, c].
    columns
        Images per row. Default: the grid is as square as possible.

    Returns
    -------
    NDArray
        uint8 [height, width, c].
    """
    n, h, w, c = images.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    canvas = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, c), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        canvas[top : top + h, left : left + w] = image
    return canvas


def save_png(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 [h, w, c], c = 1 or 3, as a PNG file."""
    with replacing(path) as temporary:
        as_picture(image).save(temporary)


def save_png_quickly(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write a PNG file like `save_png`, but faster: Huffman coding only, and no waiting for the disk.

    For sampled faces this takes a third of the time, and the files are no larger.
    """
    Path(path).unlink(missing_ok=True)  # if it is a link, its target must not be overwritten
    with Path(path).open("xb") as file:
        as_picture(image).save(file, "PNG", compress_type=Z_HUFFMAN_ONLY)


def as_picture(image: NDArray[np.uint8]) -> Image.Image:
    """Turn uint8 [h, w, c], c = 1 or 3, into a picture of Pillow."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def save_labelled_rows(path: str | Path, rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
    """Draw rows of images with their labels on the left, and write them as a PNG file.

    Parameters
    ----------
    path
        The PNG file.
    rows
        Pairs of label and images uint8 [n, h, w, c].
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (takes half a second, needed only here)

    columns = max(len(images) for _, images in rows)
    figure = Figure(figsize=(columns + 1.4, 1.05 * len(rows)), dpi=100, layout="constrained")
    axes: Any = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (label, images) in zip(axes, rows, strict=True):
        picture = grid(images, columns)
        axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        text = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 3] + "..."
        axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=11, parse_math=False)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    with replacing(path) as temporary:
        # Without the Software tag the file does not depend on the version of matplotlib.
        figure.savefig(temporary, bbox_inches="tight", metadata={"Software": None})
