"""Pictures from a generator: a grid, an interpolation strip, single images, an array."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glann.config import Sample
from glann.errors import GlannError
from glann.generator import Generator
from glann.pictures import grid, save_png
from glann.storage import save_npy


def draw_samples(generator: Generator, config: Sample, folder: Path) -> None:
    """Write grid.png, interpolation.png and images/*.png into `folder`.

    Parameters
    ----------
    generator
        The trained generator.
    config
        The `sample` section of params.yaml.
    folder
        Is created where it is missing.
    """
    images = generator.sample(config.count, config.seed, config.truncation)
    strips = generator.interpolate(
        config.interpolations, config.interpolation_steps, config.seed, config.truncation
    )
    save_images(images, folder / "images")
    save_png(folder / "grid.png", grid(images))
    save_png(folder / "interpolation.png", grid(strips.reshape(-1, *images.shape[1:]), strips.shape[1]))


def save_images(images: NDArray[np.uint8], out: Path) -> None:
    """Write images uint8 [n, h, w, c] to `out`, whose ending decides the form.

    "faces.png" becomes a grid, "faces.npy" the array, and a name without ending a folder of single PNG
    files 00000.png, 00001.png and so on; other files in it are left alone.

    Raises
    ------
    GlannError
        If `out` has another ending.
    """
    suffix = check_out(out)
    if suffix == ".npy":
        save_npy(out, images)
    elif suffix == ".png":
        save_png(out, grid(images))
    else:
        for i, image in enumerate(images):
            save_png(out / f"{i:05d}.png", image)


def check_out(out: Path) -> str:
    """Return the ending of `out` in small letters: ".png", ".npy", or "" for a folder."""
    suffix = "" if out.is_dir() else out.suffix.lower()
    if suffix not in ("", ".png", ".npy"):
        raise GlannError(f"--out {out}: use a name ending in .png (grid) or .npy (array), or a folder")
    return suffix
