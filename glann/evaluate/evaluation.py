"""Comparing generated images with real ones that the model has never seen.

Each row of the table is a set of images that is compared with the hold-out images:

- ``train``: training images, the best that any generator could do;
- ``reconstructions``: decoded training latents, the best that any model of the latents could do;
- ``glann``: noise that is mapped and decoded, the model itself;
- ``glo_gaussian``, ``glo_mixture`` and others: decoded latents from a prior (`glann.evaluate.priors`), i.e.
  GLO without IMLE, as in the GLANN paper (arXiv:1812.08985).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glann.errors import GlannError
from glann.evaluate.classes import by_class
from glann.evaluate.comparison import Curve, Described, compare
from glann.evaluate.diagnosis import farthest, nearest_images, quantiles
from glann.evaluate.features import Network, choose_kind, extract, feature_network
from glann.evaluate.metrics import prd
from glann.evaluate.priors import draw_prior
from glann.evaluate.settings import Evaluate
from glann.evaluate.sharpness import laplacian_variance
from glann.images.classes import Classes
from glann.runtime.progress import progress
from glann.runtime.randomness import stream, stream_seed
from glann.sample.generator import Generator

CHUNK_BYTES = 2**30  # size of the images in memory at once
SEARCHED = 20_000  # most training images that are searched for copies and for misses
SHOWN = 64  # images per row that are kept for the pictures
WEAKEST = 10  # images shown that are missed, and samples shown that are unlike any image

Images = Callable[[slice], NDArray[np.uint8]]
"""``images(part)`` returns a slice of a set of images, uint8 [n, h, w, c], and decodes no others."""


@dataclass(frozen=True)
class Evaluation:
    """The results of `evaluate`.

    Attributes
    ----------
    features
        Kind of features.
    count, reference_count
        Number of images per row, and of hold-out images.
    table
        For each row, its metrics by name.
    curves
        For each row, its precision and recall of distributions.
    novelty
        Quantiles of the distance to the nearest training image, for samples and for hold-out images.
    shown
        Up to 64 images of each row, uint8 [k, h, w, c].
    nearest
        The training images nearest to the first samples, uint8 [k, h, w, c].
    searched
        Number of training images that were searched for these.
    weakest
        Rows of label and images uint8 [k, h, w, c]: the training images that samples miss most, the samples
        least like any training image, and the nearest image of each.
    classes
        By name of a class, what `glann.evaluate.classes.by_class` says about it; empty without classes.
    """

    features: str
    count: int
    reference_count: int
    table: dict[str, dict[str, float]]
    curves: dict[str, Curve]
    novelty: list[dict[str, float]]
    shown: dict[str, NDArray[np.uint8]]
    nearest: NDArray[np.uint8]
    searched: int
    weakest: list[tuple[str, NDArray[np.uint8]]]
    classes: dict[str, dict[str, float]]


def evaluate(
    config: Evaluate,
    seed: int,
    images: NDArray[np.uint8],
    holdout: NDArray[np.uint8],
    latents: Tensor,
    generator: Generator,
    classes: Classes | None = None,
) -> Evaluation:
    """Measure the model.

    Parameters
    ----------
    config
        The `evaluate` section of params.yaml.
    seed
        Seed of every random draw.
    images, holdout
        uint8 [n, h, w, c] and [m, h, w, c]: training and hold-out images; may be memory-mapped.
    latents
        float32 [n, d]: row i is the latent of training image i.
    generator
        The trained model.
    classes
        Of the images, if they have any.

    Raises
    ------
    GlannError
        If there are fewer than two images, the latents belong to other images, or are not finite.
    """
    _check(images, holdout, latents, generator)
    if classes:
        _check_classes(classes, images, holdout, generator)
    count = min(config.count, len(images))
    order = torch.randperm(len(images), generator=stream(seed, "evaluate", "rows")).numpy()
    chosen, pool = order[:count], np.sort(order[:SEARCHED])
    seed_of_samples = stream_seed(seed, "evaluate", "glann")
    drawn = generator.sample_latents(count, seed_of_samples)

    def decoded(rows: Tensor) -> Images:
        return lambda part: generator.decode(rows[part])

    sets: dict[str, Images] = {
        "train": lambda part: np.asarray(images[chosen[part]]),
        "reconstructions": decoded(latents[chosen]),
        "glann": decoded(drawn),
    }
    for prior in dict.fromkeys(config.priors):
        sets[f"glo_{prior}"] = decoded(draw_prior(prior, latents, count, seed, config, generator.execution))

    kind = choose_kind(config.features, config.weights)
    network = feature_network(kind, config.weights, holdout, generator.execution)
    chunk = max(1, CHUNK_BYTES // images[0].nbytes)
    reference = describe(
        network, lambda part: np.asarray(holdout[part]), len(holdout), chunk, f"{kind} features of hold-out"
    )
    described = {
        name: describe(network, rows, count, chunk, f"{kind} features of {name}")
        for name, rows in sets.items()
    }
    features = {name: rows.features for name, rows in described.items()}
    curves, table = {}, {}
    with progress("metrics", len(described), "rows") as advance:
        for name, rows in described.items():
            curves[name] = prd(rows.features, reference.features, seed)
            table[name] = compare(rows, reference, curves[name])
            advance()

    classified = {}
    if classes:
        asked = generator.labels(count, seed_of_samples)
        classified = by_class(
            classes,
            chosen,
            features["train"],
            reference.features,
            features["glann"],
            None if asked is None else asked.numpy(),
        )
    shown = {name: rows(slice(SHOWN)) for name, rows in sets.items()}
    nearest = nearest_images(network, shown["glann"], images, pool)
    # The generator normalises latents before decoding, so they are compared on the sphere.
    searched = F.normalize(latents[pool].to(drawn.device), dim=1)
    misses, near = farthest(searched, F.normalize(drawn, dim=1), WEAKEST)
    strange, alike = farthest(features["glann"], features["train"], WEAKEST)
    weakest = [
        ("training images\nmissed most", np.asarray(images[pool[misses]])),
        ("nearest sample", generator.decode(drawn[near])),
        ("samples least like\nany training image", generator.decode(drawn[strange])),
        (f"nearest of {count}\ntraining images", np.asarray(images[chosen[alike]])),
    ]
    novelty = quantiles({"glann": features["glann"], "holdout": reference.features}, features["train"])
    return Evaluation(
        kind, count, len(holdout), table, curves, novelty, shown, nearest, len(pool), weakest, classified
    )


def describe(network: Network, images: Images, count: int, chunk: int, title: str) -> Described:
    """Describe `count` images, with at most `chunk` images in memory."""
    features, sharpness = [], []
    for start in range(0, count, chunk):
        part = images(slice(start, min(start + chunk, count)))
        features.append(extract(network, part, title))
        sharpness.append(laplacian_variance(part))
    return Described(torch.cat(features), torch.cat(sharpness))


def _check_classes(
    classes: Classes, images: NDArray[np.uint8], holdout: NDArray[np.uint8], generator: Generator
) -> None:
    rows = (len(classes.images), len(classes.holdout))
    if rows != (len(images), len(holdout)) or generator.classes not in ([], classes.names):
        raise GlannError("data/prepare/classes.json: belongs to other images or models; run: dvc repro")


def _check(
    images: NDArray[np.uint8], holdout: NDArray[np.uint8], latents: Tensor, generator: Generator
) -> None:
    drawn = generator.decoder.architecture
    for name, array in (("training", images), ("hold-out", holdout)):
        if array.shape[1:] != (drawn.size, drawn.size, drawn.channels):
            raise GlannError(
                f"evaluate: {name} images are {[*array.shape[1:]]}, but the generator draws "
                f"{[drawn.size, drawn.size, drawn.channels]}; run: dvc repro"
            )
    if min(len(images), len(holdout)) < 2:
        raise GlannError(
            f"prepare: {len(images)} training and {len(holdout)} hold-out images, but distances need two "
            "of each; raise prepare.count"
        )
    if len(latents) != len(images):
        raise GlannError(f"glo: {len(latents)} latents of {len(images)} training images; run: dvc repro")
    if not latents.isfinite().all():
        raise GlannError("glo: latents are not finite; lower glo.latent_lr or glo.decoder_lr")
