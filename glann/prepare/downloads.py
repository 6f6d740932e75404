"""Data sets that are downloaded, by torchvision and scikit-learn."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from glann.errors import GlannError
from glann.prepare.listing import names_in
from glann.prepare.source import Source, files_of, rows_of

DOWNLOAD_SECONDS = 60  # without an answer, after which a download counts as failed
MNIST_FILES = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and both t10k-*-ubyte.gz"
BY_HAND = {
    "mnist": f"{MNIST_FILES} into {{cache}}/MNIST/raw",
    "fashion_mnist": f"{MNIST_FILES} into {{cache}}/FashionMNIST/raw",
    "cifar10": "cifar-10-python.tar.gz into {cache}",
    "celeba": "img_align_celeba/ (unpacked), the four list_*.txt and identity_CelebA.txt into {cache}/celeba",
    "olivetti": "olivettifaces.mat into {cache}",
    "lfw": "lfw_funneled/ (unpacked) into {cache}/lfw_home",
}
LFW_FACE = (62, 70, 187, 195)  # left, top, right, bottom: scikit-learn's rows, and as many columns


def _torchvision(name: str, cache: Path) -> Source:
    from torchvision import datasets  # noqa: PLC0415 (two seconds, only here)

    images = getattr(datasets, name)(cache, train=True, download=True)
    # digits are called "3 - three"
    return rows_of(
        np.asarray(images.data),
        np.asarray(images.targets).tolist(),
        [name.split(" - ")[0] for name in images.classes],
    )


def _celeba(cache: Path) -> Source:
    from torchvision.datasets import CelebA  # noqa: PLC0415

    names = CelebA(cache, split="train", download=True).filename
    root = cache / "celeba" / "img_align_celeba"
    return files_of([os.fsencode(name) for name in names], os.fsencode(root), f"unpack {root} again")


def _olivetti(cache: Path) -> Source:
    from sklearn.datasets import fetch_olivetti_faces  # noqa: PLC0415

    faces = fetch_olivetti_faces(data_home=cache)
    people = [str(i) for i in range(faces.target.max() + 1)]
    return rows_of(faces.images, faces.target.tolist(), people)


def _lfw(cache: Path) -> Source:
    """Use the files: scikit-learn's array takes 4 GB of memory in colour at full size."""
    folder = cache / "lfw_home" / "lfw_funneled"
    if not folder.is_dir():
        from sklearn.datasets import fetch_lfw_people  # noqa: PLC0415

        fetch_lfw_people(data_home=cache, min_faces_per_person=500)  # downloads everything, loads one person
    root = os.fsencode(folder)
    names = [name for name in names_in(root) if name.endswith(b".jpg")]
    if not names:
        raise FileNotFoundError(f"no pictures in {folder}")
    return files_of(names, root, f"unpack {folder} again", LFW_FACE)


DOWNLOADED: dict[str, Callable[[Path], Source]] = {
    "mnist": partial(_torchvision, "MNIST"),
    "fashion_mnist": partial(_torchvision, "FashionMNIST"),
    "cifar10": partial(_torchvision, "CIFAR10"),
    "celeba": _celeba,
    "olivetti": _olivetti,
    "lfw": _lfw,
}


@contextmanager
def downloading(source: str, cache: Path) -> Iterator[None]:
    """Turn any failure of a download into one line that says what to do."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_SECONDS)  # behind some firewalls a download would wait forever
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
