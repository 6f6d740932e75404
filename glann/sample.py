"""Pictures from a generator: a grid, an interpolation strip, single images, an array."""

import itertools
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glann.config import Sample
from glann.errors import GlannError
from glann.generator import Generator
from glann.pictures import grid, save_png, save_png_quickly
from glann.storage import check_writable, check_writable_folder, replacing
from glann.workers import cores

WAITING = 256  # images


def draw_samples(generator: Generator, config: Sample, folder: Path) -> None:
    """Write grid.png, interpolation.png and images/*.png into `folder`.

    Parameters
    ----------
    generator
        The trained generator.
    config
        The `sample` section of params.yaml.
    folder
        Is there; the stage yields one whose content appears as a whole.
    """
    images = generator.sample(config.count, config.seed, config.truncation)
    strips = generator.interpolate(
        config.interpolations, config.interpolation_steps, config.seed, config.truncation
    )
    save_images([images], config.count, folder / "images")
    save_png(folder / "grid.png", grid(images))
    save_png(folder / "interpolation.png", grid(strips.reshape(-1, *images.shape[1:]), strips.shape[1]))


def save_images(blocks: Iterable[NDArray[np.uint8]], count: int, out: Path) -> None:
    """Write images to `out`, whose ending decides the form.

    "faces.png" becomes a grid, "faces.npy" the array, and a name without ending a folder of single PNG
    files 00000.png, 00001.png and so on; other files in it are left alone.

    Parameters
    ----------
    blocks
        uint8 [b, h, w, c], `count` images in all; written as they come, beside the making of the next.
    count
        Images in all.
    out
        File or folder; folders are created.

    Raises
    ------
    GlannError
        If `out` has another ending.
    """
    suffix = check_out(out)
    if suffix == ".npy":
        _save_npy(blocks, count, out)
    elif suffix == ".png":
        save_png(out, grid(np.concatenate([*blocks])))
    else:
        _save_folder(blocks, out)


def _save_npy(blocks: Iterable[NDArray[np.uint8]], count: int, out: Path) -> None:
    """Write the array as it comes; a thread brings it to the disk beside the making of the next images."""
    with replacing(out) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(1) as thread:
        syncing: Future[Any] = thread.submit(int)
        for i, block in enumerate(blocks):
            if i == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *block.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(block).data)
            if syncing.done():
                syncing.result()
                syncing = thread.submit(os.fsync, file.fileno())
        syncing.result()


def _save_folder(blocks: Iterable[NDArray[np.uint8]], out: Path) -> None:
    """Write single files on all cores; encoders run outside Python's lock."""
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cores()) as threads:
        waiting: deque[Future[None]] = deque()
        for i, image in enumerate(itertools.chain.from_iterable(blocks)):
            waiting.append(threads.submit(save_png_quickly, out / f"{i:05d}.png", image))
            if len(waiting) > WAITING:  # what is decoded but not yet written stays bounded
                waiting.popleft().result()
        for writing in waiting:
            writing.result()


def check_out(out: Path) -> str:
    """Return the ending of `out` in small letters: ".png", ".npy", or "" for a folder.

    Raises
    ------
    GlannError
        If `out` has another ending, or nothing could be written there.
    """
    suffix = "" if out.is_dir() else out.suffix.lower()
    if suffix not in ("", ".png", ".npy"):
        raise GlannError(f"--out {out}: use a name ending in .png (grid) or .npy (array), or a folder")
    if suffix:
        check_writable(out)
    elif out.exists() and not out.is_dir():
        raise GlannError(f"--out {out}: a file that is there already; name a folder, a .png or a .npy")
    else:
        check_writable_folder(out, out)
    return suffix
