"""How close generated images come to real ones that the model has never seen.

Every row of the table is a set of images compared with the hold-out images:

- ``train``: training images, the best that a generator could do;
- ``reconstructions``: training latents, decoded, the best that a model of the latents could do;
- ``glann``: noise, mapped and decoded, the model itself;
- ``glo_gaussian``, ``glo_mixture`` and others: latents drawn from a prior (`glann.evaluate.priors`), decoded:
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
from glann.evaluate.comparison import Curve, compare
from glann.evaluate.diagnosis import farthest, nearest_images, quantiles
from glann.evaluate.features import Network, choose_kind, extract, feature_network
from glann.evaluate.metrics import prd
from glann.evaluate.priors import draw_prior
from glann.evaluate.settings import Evaluate
from glann.runtime.progress import progress
from glann.runtime.randomness import stream, stream_seed
from glann.sample.generator import Generator

CHUNK_BYTES = 2**30  # images of a row in memory at once
SEARCHED = 20_000  # training images searched for copies, and latents for misses, at most
SHOWN = 64  # images of each row that are kept for the pictures
WITH_NEAREST = 16  # samples whose nearest training image is shown
WEAKEST = 10  # misses, and samples like no image, that are shown

Images = Callable[[slice], NDArray[np.uint8]]
"""``images(part)`` returns these images of a set, uint8 [n, h, w, c], and makes no others."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    features
        Kind of the features.
    count, reference_count
        Images of each row, and hold-out images.
    table
        For each row, a number per column.
    curves
        For each row, its precision and recall of distributions.
    novelty
        Quantiles of the distances to the nearest training image, of samples and of hold-out images.
    shown
        Up to 64 images of each row, uint8 [k, h, w, c].
    nearest
        The training images nearest to the first samples shown, uint8 [k, h, w, c].
    searched
        Training images that were searched for these.
    weakest
        Labels and images uint8 [k, h, w, c]: training images missed most, samples least like any, and the
        nearest of each.
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


def evaluate(
    config: Evaluate,
    seed: int,
    images: NDArray[np.uint8],
    holdout: NDArray[np.uint8],
    latents: Tensor,
    generator: Generator,
) -> Evaluation:
    """Measure the model.

    Parameters
    ----------
    config
        The `evaluate` section of params.yaml.
    seed
        Of every random draw.
    images, holdout
        uint8 [n, h, w, c] and [m, h, w, c]: training and hold-out images; may be memory-mapped.
    latents
        float32 [n, d]: row i is the latent of training image i.
    generator
        The trained model.

    Raises
    ------
    GlannError
        If there is nothing to measure: fewer than two images, latents of other images, latents not finite.
    """
    _check(images, holdout, latents, generator)
    count = min(config.count, len(images))
    order = torch.randperm(len(images), generator=stream(seed, "evaluate", "rows")).numpy()
    chosen, pool = order[:count], np.sort(order[:SEARCHED])
    drawn = generator.sample_latents(count, stream_seed(seed, "evaluate", "glann"))

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
    reference = extract(network, holdout, f"{kind} features of hold-out")
    chunk = max(1, CHUNK_BYTES // images[0].nbytes)
    features = {
        name: _extract(network, rows, count, chunk, f"{kind} features of {name}")
        for name, rows in sets.items()
    }
    curves, table = {}, {}
    with progress("metrics", len(features), "rows") as advance:
        for name, rows in features.items():
            curves[name] = prd(rows, reference, seed)
            table[name] = compare(rows, reference, curves[name])
            advance()

    shown = {name: rows(slice(SHOWN)) for name, rows in sets.items()}
    nearest = nearest_images(network, shown["glann"][:WITH_NEAREST], images, pool)
    # The decoder normalises its input, so latents are compared on the sphere.
    searched = F.normalize(latents[pool].to(drawn.device), dim=1)
    misses, near = farthest(searched, F.normalize(drawn, dim=1), WEAKEST)
    strange, alike = farthest(features["glann"], features["train"], WEAKEST)
    weakest = [
        ("training images\nmissed most", np.asarray(images[pool[misses]])),
        ("nearest sample", generator.decode(drawn[near])),
        ("samples least like\nany training image", generator.decode(drawn[strange])),
        (f"nearest of {count}", np.asarray(images[chosen[alike]])),
    ]
    novelty = quantiles({"glann": features["glann"], "holdout": reference}, features["train"])
    return Evaluation(kind, count, len(holdout), table, curves, novelty, shown, nearest, len(pool), weakest)


def _extract(network: Network, images: Images, count: int, chunk: int, title: str) -> Tensor:
    """Extract features of all `count` images with no more than `chunk` of them in memory."""
    parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    return torch.cat([extract(network, images(part), title) for part in parts])


def _check(
    images: NDArray[np.uint8], holdout: NDArray[np.uint8], latents: Tensor, generator: Generator
) -> None:
    drawn = generator.decoder.architecture
    for name, array in (("training", images), ("hold-out", holdout)):
        if array.shape[1:] != (drawn.size, drawn.size, drawn.channels):
            raise GlannError(
                f"evaluate: {name} images are {[*array.shape[1:]]}, and the generator draws "
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
