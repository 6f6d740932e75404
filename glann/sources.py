"""Where images come from."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glann.arrays import open_images, remedy
from glann.avatars import draw_avatar
from glann.config import STAGES, Prepare
from glann.decoding import MOST_PIXELS, Box, Decode, RowsOf, decode_file, decode_row
from glann.errors import GlannError
from glann.streams import stream_seed

DOWNLOAD_SECONDS = 60  # without an answer, after which a download has failed
MNIST_FILES = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and both t10k-*-ubyte.gz"
BY_HAND = {
    "mnist": f"{MNIST_FILES} into {{cache}}/MNIST/raw",
    "fashion_mnist": f"{MNIST_FILES} into {{cache}}/FashionMNIST/raw",
    "cifar10": "cifar-10-python.tar.gz into {cache}",
    "celeba": "img_align_celeba/ (unpacked), the four list_*.txt and identity_CelebA.txt into {cache}/celeba",
    "olivetti": "olivettifaces.mat into {cache}",
    "lfw": "lfw_funneled/ (unpacked) into {cache}/lfw_home",
}
LFW_FACE = (62, 70, 187, 195)  # left, top, right, bottom: scikit-learn's default rows, and as many columns


@dataclass(frozen=True)
class Source:
    """Images that are there, none of them decoded yet."""

    items: Sequence[Any] | NDArray[Any]
    """one per image, in an order that depends on nothing but the images"""
    decode: Decode
    """makes a picture of an item; a function that can be sent to another process"""
    name: Callable[[int], str]
    """what people call item i"""
    remedy: Callable[[Sequence[int]], str]
    """what to do about the items, given by number, that cannot be used"""
    pixels: int = MOST_PIXELS
    """that an item has at most"""
    in_random_order: bool = False
    """any split of the items is a random split"""


def find_images(config: Prepare, seed: int) -> Source:
    """Find the images that `config` names, downloading them where need be."""
    if config.source == "avatars":
        return _avatars(config, seed)
    if config.source == "folder":
        _not_our_own(config.path, "pictures", "data/raw")
        return _folder(config.path)
    if config.source == "npy":
        _not_our_own(config.path, "an array", "data/raw/images.npy")
        return _npy(config)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glann"
    with _downloading(config.source, cache):
        return DOWNLOADED[config.source](cache)


def _avatars(config: Prepare, seed: int) -> Source:
    """Return faces drawn on demand; face i is the same whatever the count."""
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
    """Refuse the outputs of the pipeline: a model would train on its own pictures."""
    found = Path(os.path.realpath(path))
    for output in (Path("data") / stage for stage in STAGES):
        written = Path(os.path.realpath(output))
        inside = found.is_relative_to(written)
        if inside or (written.exists() and written.is_relative_to(found)):
            raise GlannError(
                f"prepare.path: {path} {'is in' if inside else 'holds'} {output}, where the pipeline "
                f"puts its own results; name {what} of yours elsewhere, e.g. {instead}"
            )


def _folder(path: str) -> Source:
    """Return all files of a tree, by relative path; hidden files and folders are left out."""
    try:
        os.scandir(path).close()
    except NotADirectoryError:
        what = "set prepare.source to npy" if path.endswith(".npy") else "name the folder that it is in"
        raise GlannError(f"prepare.path: {path}: Not a directory; {what}") from None
    except PermissionError:
        raise GlannError(f"prepare.path: {path}: Permission denied; make it readable") from None
    except OSError as error:
        raise GlannError(f"prepare.path: {path}: {error.strerror}; name a folder of images") from None
    root = os.fsencode(path)
    names = _names_in(root)
    if not names:
        raise GlannError(
            f"prepare.path: no files in {path} or its subfolders; put images there "
            "(hidden files and linked folders do not count)"
        )
    return _files(names, root, "remove or repair them")


def _files(names: Sequence[bytes], root: bytes, repair: str, box: Box | None = None) -> Source:
    decode = partial(decode_file, root=root, box=box)
    return Source(names, decode, lambda i: printable(names[i]), lambda _: repair)


def _names_in(root: bytes) -> list[bytes]:
    """List the files below `root`, sorted by the bytes of their relative path.

    Linked files count, linked folders do not: they may lead in circles. A dangling link and a folder that may
    not be read are listed too, since decoding then says what is wrong with them.
    """
    root = os.path.join(root, b"")  # noqa: PTH118 (pathlib has no bytes)
    paths: list[bytes] = []
    unreadable: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(b".")]
        inside = (os.path.join(folder, name) for name in names if not name.startswith(b"."))  # noqa: PTH118
        # Pipes, sockets and devices are not files: opening one may wait for ever.
        paths += (path for path in inside if os.path.isfile(path) or not os.path.exists(path))  # noqa: PTH110, PTH113
    paths += (error.filename for error in unreadable)
    return sorted(path.removeprefix(root) for path in paths)


def printable(name: bytes) -> str:
    """Return a file name as text of one line, whatever bytes it is made of."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _npy(config: Prepare) -> Source:
    """Return the rows of an .npy file, by number."""
    array = open_images(config)
    return Source(
        range(len(array)),
        RowsOf(config.path),
        "row {}".format,
        partial(remedy, array),
        pixels=array.shape[1] * array.shape[2],
    )


def _rows(array: NDArray[Any]) -> Source:
    pixels = array.shape[1] * array.shape[2]
    return Source(array, decode_row, "row {}".format, partial(remedy, array), pixels)


def _torchvision(name: str, cache: Path) -> Source:
    from torchvision import datasets  # noqa: PLC0415 (two seconds, only here)

    return _rows(np.asarray(getattr(datasets, name)(cache, train=True, download=True).data))


def _celeba(cache: Path) -> Source:
    from torchvision.datasets import CelebA  # noqa: PLC0415

    names = CelebA(cache, split="train", download=True).filename
    root = cache / "celeba" / "img_align_celeba"
    return _files([os.fsencode(name) for name in names], os.fsencode(root), f"unpack {root} again")


def _olivetti(cache: Path) -> Source:
    from sklearn.datasets import fetch_olivetti_faces  # noqa: PLC0415

    return _rows(fetch_olivetti_faces(data_home=cache).images)


def _lfw(cache: Path) -> Source:
    """Return the files, not scikit-learn's array: in colour at full size that takes 4 GB of memory."""
    folder = cache / "lfw_home" / "lfw_funneled"
    if not folder.is_dir():
        from sklearn.datasets import fetch_lfw_people  # noqa: PLC0415

        fetch_lfw_people(data_home=cache, min_faces_per_person=500)  # downloads all, loads one person
    root = os.fsencode(folder)
    names = [name for name in _names_in(root) if name.endswith(b".jpg")]
    if not names:
        raise FileNotFoundError(f"no pictures in {folder}")
    return _files(names, root, f"unpack {folder} again", LFW_FACE)


DOWNLOADED: dict[str, Callable[[Path], Source]] = {
    "mnist": partial(_torchvision, "MNIST"),
    "fashion_mnist": partial(_torchvision, "FashionMNIST"),
    "cifar10": partial(_torchvision, "CIFAR10"),
    "celeba": _celeba,
    "olivetti": _olivetti,
    "lfw": _lfw,
}


@contextmanager
def _downloading(source: str, cache: Path) -> Iterator[None]:
    """Say in one line what to do where a download fails, in whatever way."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SECONDS)  # behind some firewalls a download would wait for ever
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split())[:150] or type(error).__name__
        raise GlannError(
            f"prepare.source: no {source} ({why}); put {BY_HAND[source].format(cache=cache)}, "
            "or use prepare.source folder or npy"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
