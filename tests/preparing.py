"""What the tests of prepare, decoding and sources share."""

import json

import numpy as np
import pytest
from PIL import Image

from glann.errors import GlannError
from glann.prepare.dataset import prepare
from glann.prepare.settings import Prepare

OUTPUTS = (
    "classes.json",
    "images.npy",
    "holdout.npy",
    "dataset.json",
    "names.json",
    "preview.png",
    "repeats.json",
    "review.html",
)

WHITE = (255, 255, 255)
COLOR = (200, 100, 50)
GREY = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)  # COLOR's luma, ITU-R 601


def config(source, path="unused", **keys):
    return Prepare(
        **{"source": source, "path": str(path), "count": None, "resolution": 16, "holdout": 2, **keys}
    )


def run(config, out, seed=0, processes=1):
    """Prepare, and return training images, hold-out images and dataset.json."""
    prepare(config, seed, out, processes)
    assert {file.name for file in out.iterdir()} == set(OUTPUTS)
    return (
        np.load(out / "images.npy"),
        np.load(out / "holdout.npy"),
        json.loads((out / "dataset.json").read_text()),
    )


def stop(config, out, seed=0):
    """Prepare what cannot be prepared, and return the line that says why."""
    with pytest.raises(GlannError) as caught:
        prepare(config, seed, out, 1)
    assert not list(out.glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(folder, count, size=(16, 16)):
    """Save `count` images, each of one grey of its own: 0, 1, 2 ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("L", size, i).save(folder / f"{i:03}.png")
    return folder


def greys(*arrays):
    return [int(image[0, 0, 0]) for array in arrays for image in array]


def only_image(folder, out, **keys):
    """Prepare one file three times over, and return its pixels."""
    (file,) = folder.iterdir()
    for i in range(2):
        (folder / f"{i}{file.suffix}").write_bytes(file.read_bytes())
    images, holdout, _ = run(config("folder", folder, repeats="keep", **keys), out)
    assert (images == holdout).all()
    return images[0]
