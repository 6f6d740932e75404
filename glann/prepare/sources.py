"""Where images come from: one function per source."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from glann.errors import GlannError
from glann.prepare.arrays import open_images, open_labels, remedy
from glann.prepare.avatars import draw_avatar
from glann.prepare.downloads import DOWNLOADED, downloading
from glann.prepare.listing import names_in, printable
from glann.prepare.reading import RowsOf
from glann.prepare.settings import Prepare
from glann.prepare.source import Source, files_of
from glann.runtime.files import STAGES, cache_folder
from glann.runtime.randomness import stream_seed


def find_images(config: Prepare, seed: int) -> Source:
    """Find the images that `config` names, and download them if necessary."""
    if config.source in SOURCES:
        return SOURCES[config.source](config, seed)
    cache = cache_folder()
    with downloading(config.source, cache):
        return DOWNLOADED[config.source](cache)


def _avatars(config: Prepare, seed: int) -> Source:
    """Take faces that are drawn on demand; face i does not depend on the count."""
    seeds = [stream_seed(seed, "prepare", "avatar", i) for i in range(config.count or 0)]
    return Source(
        seeds,
        draw_avatar,
        "avatar {}".format,
        lambda _: "install python-avatars and resvg-py again",
        pixels=config.resolution**2,
        in_random_order=True,
    )


def _not_our_own(path: str, what: str, instead: str) -> None:
    """Refuse the outputs of the pipeline: a model must not train on its own pictures."""
    found = Path(os.path.realpath(path))
    for output in (Path("data") / stage for stage in STAGES):
        written = Path(os.path.realpath(output))
        inside = found.is_relative_to(written)
        if inside or (written.exists() and written.is_relative_to(found)):
            raise GlannError(
                f"prepare.path: {path} {'is in' if inside else 'holds'} {output}, where the pipeline "
                f"puts its results; use {what} of your own elsewhere, e.g. {instead}"
            )


def _folder(config: Prepare, seed: int) -> Source:
    """Find all files of a folder and its subfolders, except hidden ones."""
    path = config.path
    _not_our_own(path, "pictures", "data/raw")
    try:
        os.scandir(path).close()
    except NotADirectoryError:
        what = "set prepare.source to npy" if path.endswith(".npy") else "name the folder that holds it"
        raise GlannError(f"prepare.path: {path}: Not a directory; {what}") from None
    except PermissionError:
        raise GlannError(f"prepare.path: {path}: Permission denied; make it readable") from None
    except OSError as error:
        raise GlannError(f"prepare.path: {path}: {error.strerror}; name a folder of images") from None
    root = os.fsencode(path)
    names = names_in(root)
    if not names:
        raise GlannError(
            f"prepare.path: no files in {path} or its subfolders; put images there "
            "(hidden files, notes such as a.txt, and linked folders do not count)"
        )
    return files_of(names, root, "remove or repair them", class_of=_subfolder_of(names, root))


def _subfolder_of(names: Sequence[bytes], root: bytes) -> Callable[[int], str] | None:
    """Return what tells the class of file i: the subfolder of `root` that it is in, if all are in several."""
    parts = [name.split(os.fsencode(os.sep), 1) for name in names]
    # A folder that cannot be read is listed too, as a name of its own.
    beside = [
        name for name, *inside in parts if not inside and not Path(os.fsdecode(root + b"/" + name)).is_dir()
    ]
    if beside or len({first for first, *_ in parts}) < 2:
        return None
    return lambda i: printable(parts[i][0])


def _npy(config: Prepare, seed: int) -> Source:
    """Take the rows of an .npy file, by number."""
    _not_our_own(config.path, "an array", "data/raw/images.npy")
    array = open_images(config)
    labels = open_labels(config, len(array))
    return Source(
        range(len(array)),
        RowsOf(config.path),
        "row {}".format,
        partial(remedy, array),
        pixels=array.shape[1] * array.shape[2],
        class_of=None if labels is None else lambda i: str(labels[i]),
    )


SOURCES = {"avatars": _avatars, "folder": _folder, "npy": _npy}
"""Sources on this machine, see also `DOWNLOADED`; each is called with the settings and the seed."""
