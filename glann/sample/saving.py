"""Saving images: a grid, an interpolation strip, single files, an array."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glann.errors import GlannError
from glann.images.png import grid, save_labelled_rows, save_png, save_png_quickly
from glann.runtime.compute import cores
from glann.runtime.files import check_writable, check_writable_folder, replacing
from glann.runtime.npy import NpyWriter
from glann.sample.animation import STEPS, save_animation
from glann.sample.generator import Generator
from glann.sample.settings import Sample

MOST_MOVING, MOVING_BYTES = 8, 2**28  # the most rows and pixels of interpolation.webp
ROW_HEIGHT = 192  # px, to about which it is enlarged
WAITING = 256  # most images that wait to be written


def draw_samples(generator: Generator, config: Sample, folder: Path) -> None:
    """Write grid.png, interpolation.png, interpolation.webp and images/*.png into `folder`.

    With a conditional model, images are drawn of one class after the other, from the same noise, and grid.png
    has a row per class.

    Parameters
    ----------
    generator
        The trained generator.
    config
        The `sample` section of params.yaml.
    folder
        An existing folder.
    """
    classes = generator.classes[: config.count]
    each = config.count // len(classes) if classes else config.count
    wanted: list[str | None] = [*classes] or [None]
    latents = [generator.sample_latents(each, config.seed, config.truncation, name) for name in wanted]
    images = generator.decode(torch.cat(latents))
    strips = generator.interpolate(
        config.interpolations, config.interpolation_steps, config.seed, config.truncation
    )
    save_images(images, folder / "images")
    if classes:
        by_class = images.reshape(len(classes), each, *images.shape[1:])
        save_labelled_rows(folder / "grid.png", [*zip(classes, by_class, strict=True)])
    else:
        save_png(folder / "grid.png", grid(images))
    save_png(folder / "interpolation.png", grid(strips.reshape(-1, *images.shape[1:]), strips.shape[1]))
    rows = max(1, min(config.interpolations, MOST_MOVING, MOVING_BYTES // (STEPS * images[0].nbytes)))
    moving = generator.interpolate(rows, STEPS, config.seed, config.truncation)
    there = [grid(moving[:, i], columns=rows) for i in range(STEPS)]
    save_animation(folder / "interpolation.webp", np.stack([*there, *there[-2:0:-1]]), side=ROW_HEIGHT)


def save_images(images: NDArray[np.uint8] | Iterable[NDArray[np.uint8]], out: str | Path) -> None:
    """Write images to `out`, in the format given by its ending.

    "faces.png" becomes a grid, "faces.npy" an array, and a name without an ending a folder of single PNG
    files 00000.png, 00001.png and so on. Other files in the folder are not touched.

    Parameters
    ----------
    images
        uint8 [n, h, w, c] with c = 1 or 3, or blocks of such images, as from `Generator.stream`. A block is
        written while the next one is drawn.
    out
        File or folder; missing folders are created.

    Raises
    ------
    GlannError
        If `out` has another ending, or the images are not as described.
    """
    out = Path(out)
    suffix = check_out(out)
    blocks = _checked([images] if isinstance(images, np.ndarray) else images)
    if suffix == ".npy":
        _save_npy(blocks, out)
    elif suffix == ".png":
        save_png(out, grid(np.concatenate([*blocks])))
    else:
        _save_folder(blocks, out)


def _checked(blocks: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Yield blocks of images after checking that they are uint8 [b, h, w, c] of one size."""
    expected = None
    for block in blocks:
        if block.dtype != np.uint8 or block.ndim != 4 or len(block) == 0 or block.shape[3] not in (1, 3):
            raise GlannError(
                "images: expected uint8 [n, h, w, c] with c = 1 or 3, "
                f"found {block.dtype} {[*block.shape]}; convert them"
            )
        expected = expected or block.shape[1:]
        if block.shape[1:] != expected:
            raise GlannError(f"images: {[*block.shape[1:]]} after {[*expected]}; all must have the same size")
        yield block
    if expected is None:
        raise GlannError("images: there are no images to save")


def _save_npy(blocks: Iterator[NDArray[np.uint8]], out: Path) -> None:
    """Write the array block by block; a thread syncs it to disk while the next images are drawn."""
    first = next(blocks)
    with (
        replacing(out) as temporary,
        NpyWriter(temporary, first.shape[1:]) as file,
        ThreadPoolExecutor(1) as thread,
    ):
        syncing: Future[Any] = thread.submit(int)
        for block in itertools.chain([first], blocks):
            file.append(block)
            if syncing.done():
                syncing.result()
                syncing = thread.submit(os.fsync, file.fileno())
        syncing.result()


def _save_folder(blocks: Iterable[NDArray[np.uint8]], out: Path) -> None:
    """Write single files on all cores; PNG encoders do not hold Python's global lock."""
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cores()) as threads:
        waiting: deque[Future[None]] = deque()
        for i, image in enumerate(itertools.chain.from_iterable(blocks)):
            waiting.append(threads.submit(save_png_quickly, out / f"{i:05d}.png", image))
            if len(waiting) > WAITING:  # limits the images held in memory
                waiting.popleft().result()
        for writing in waiting:
            writing.result()


def check_out(out: Path) -> str:
    """Return the ending of `out` in lower case: ".png", ".npy", or "" for a folder.

    Raises
    ------
    GlannError
        If `out` has another ending, or cannot be written to.
    """
    suffix = "" if out.is_dir() else out.suffix.lower()
    if suffix not in ("", ".png", ".npy"):
        raise GlannError(f"--out {out}: use a name ending in .png (grid) or .npy (array), or a folder")
    if suffix:
        check_writable(out)
    elif out.exists() and not out.is_dir():
        raise GlannError(f"--out {out}: this file exists already; name a folder, a .png or a .npy")
    else:
        check_writable_folder(out, out)
    return suffix
