"""Reading photographs for a model, and writing what was found for them."""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glann.errors import GlannError
from glann.images.png import grid, save_png
from glann.networks.decoders.network import DecoderArchitecture
from glann.prepare.listing import names_in, printable
from glann.prepare.reading import decode_all, decode_file
from glann.prepare.settings import Prepare
from glann.projection.projector import Known, Projection, Projector
from glann.runtime.console import say
from glann.runtime.files import all_or_none, check_writable_folder, file_digest, load_json, save_json
from glann.runtime.npy import load_latents, load_npy, save_npy
from glann.sample.generator import Generator

IN_SETTINGS = "name the file in glo.loss.weights (evaluate.weights for features: vgg)"
IN_A_ROW, MOST_SHOWN = 8, 64  # photographs in projection.png
SHOWN_SIDE = 128  # px there, at least about
WRITTEN = ("latents.npy", "projection.json", "projection.png", "reconstructions")


def read_photos(paths: Sequence[Path], model: DecoderArchitecture) -> tuple[list[str], NDArray[np.uint8]]:
    """Read pictures as `prepare` does it for this model.

    Parameters
    ----------
    paths
        Files, and folders of files.
    model
        What size the decoder draws, and how its images were prepared.

    Returns
    -------
    tuple
        Names without folders, and pictures uint8 [n, size, size, c].

    Raises
    ------
    GlannError
        If a file that is named cannot be read as a picture, or if there is none. Files in a folder that
        cannot be read are skipped, and told.
    """
    as_trained = Prepare(
        resolution=model.size,
        channels=model.channels,
        fit=model.origin.fit,
        background=model.origin.background,
    )
    names: list[str] = []
    pictures: list[NDArray[np.uint8]] = []
    for path in paths:
        root, inside = (path, names_in(os.fsencode(path))) if path.is_dir() else (path.parent, None)
        files = [os.fsencode(path.name)] if inside is None else inside
        for name in files:
            (found,) = decode_all([name], partial(decode_file, root=os.fsencode(root)), as_trained)
            if not isinstance(found, str):
                names.append(printable(name))
                pictures.append(found)
            elif inside is None:
                raise GlannError(f"{path}: {found}; name a picture, or a folder of pictures")
            else:
                say(f"{path / printable(name)}: {found}; skipped")
    if not pictures:
        raise GlannError(
            f"{', '.join(map(str, paths))}: no pictures there; name files or folders of pictures"
        )
    return names, np.stack(pictures)


def load_known(data: Path, model: DecoderArchitecture) -> Known | None:
    """Read what a model was trained on from its folder ``data``; None if there is nothing of this model.

    Raises
    ------
    GlannError
        If a file is damaged.
    """
    images, holdout, latents = (
        data / name for name in ("prepare/images.npy", "prepare/holdout.npy", "glo/latents.npy")
    )
    if not all(path.is_file() for path in (images, holdout, latents)):
        return None
    if file_digest(latents) != model.latents:
        say(f"{data}: belongs to another model; guesses come from samples")
        return None
    return Known(load_npy(images, mmap=True), load_latents(latents), load_npy(holdout, mmap=True))


def projector_of(generator: Generator, data: Path, weights: Path | None) -> Projector:
    """Return a projector that knows what the generator was trained on, if the folder `data` has it.

    Raises
    ------
    GlannError
        If a file is damaged, or if weights cannot be loaded.
    """
    if weights and not weights.is_file():
        raise GlannError(f"--weights {weights}: no such file")
    known = load_known(data, generator.decoder.architecture)
    try:
        return Projector(generator, known, str(weights) if weights else None)
    except GlannError as error:
        raise GlannError(str(error).replace(IN_SETTINGS, "name the file with --weights")) from None


def check_out(out: Path, photos: Sequence[Path]) -> None:
    """Refuse a folder that cannot be written to, that has files of others, or that has photographs.

    Raises
    ------
    GlannError
        If so.
    """
    for photo in photos:
        if photo.is_dir() and (_inside(out, photo) or _inside(photo, out)):
            raise GlannError(f"--out {out}: lies in {photo}, or the reverse; use another folder")
    there = [name for name in WRITTEN if os.path.lexists(out / name)]
    if there and not _is_ours(out):
        raise GlannError(f"--out {out}: has a {there[0]} of something else; use another folder")
    check_writable_folder(out, out)


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _is_ours(out: Path) -> bool:
    """Return whether a folder has what `save_projection` writes, and nothing else under these names."""
    drawn, files = out / "reconstructions", [out / name for name in WRITTEN if name != "reconstructions"]
    if drawn.is_symlink() or not drawn.is_dir() or not all(path.is_file() for path in files):
        return False
    if any(not re.fullmatch(r"\d{5,}\.png", path.name) for path in drawn.iterdir()):
        return False
    try:
        entries = load_json(out / "projection.json")
        return all(entry.keys() == {"file", "distance", "nearer", "foreign"} for entry in entries)
    except (GlannError, AttributeError, TypeError):
        return False


def save_projection(
    out: Path, names: Sequence[str], pictures: NDArray[np.uint8], projection: Projection
) -> None:
    """Write latents.npy, projection.png, projection.json and reconstructions/ into a folder: all or none.

    Parameters
    ----------
    out
        The folder; it is created if it does not exist.
    names, pictures
        From `read_photos`.
    projection
        What was found for them.
    """
    entries = [
        {
            "file": name,
            "distance": round(float(projection.distances[i]), 4),
            "nearer": None if projection.nearer is None else round(float(projection.nearer[i]), 3),
            "foreign": None if projection.foreign is None else projection.foreign[i],
        }
        for i, name in enumerate(names)
    ]
    shown = slice(MOST_SHOWN)
    with all_or_none(out) as folder:
        save_npy(folder / "latents.npy", projection.latents.numpy())
        save_json(folder / "projection.json", entries)
        save_png(folder / "projection.png", side_by_side(pictures[shown], projection.images[shown]))
        (folder / "reconstructions").mkdir()
        for i, image in enumerate(projection.images):
            save_png(folder / "reconstructions" / f"{i:05d}.png", image)


def side_by_side(pictures: NDArray[np.uint8], drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay pictures out in rows of up to 8, and below each what the model draws: uint8 [height, width, c].

    Small ones are enlarged.
    """
    factor = max(1, SHOWN_SIDE // pictures.shape[1])
    pictures, drawn = (rows.repeat(factor, axis=1).repeat(factor, axis=2) for rows in (pictures, drawn))
    columns = min(IN_A_ROW, len(pictures))
    rows = []
    for start in range(0, len(pictures), columns):
        for images in (pictures, drawn):
            row = images[start : start + columns]
            blank = np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)
            rows += [row, blank]
    return grid(np.concatenate(rows), columns)
