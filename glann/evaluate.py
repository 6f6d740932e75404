"""The evaluate stage: how near generated images come to real ones that the model has never seen.

Every row of the table is a set of images compared with the hold-out images:

- ``train``: training images, the best that a generator could do;
- ``reconstructions``: training latents, decoded, the best that a model of the latents could do;
- ``glann``: noise, mapped and decoded, the model itself;
- ``glo_gaussian``, ``glo_mixture`` and others: latents drawn from a prior (`glann.priors`), and decoded: GLO
  without IMLE, as the GLANN paper has it (arXiv:1812.08985).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from glann.config import Params
from glann.console import STDOUT
from glann.diagnosis import farthest, nearest_images, quantiles
from glann.errors import GlannError
from glann.features import Network, choose_kind, extract, feature_network
from glann.generator import Generator
from glann.metrics import (
    density_coverage,
    f_beta,
    frechet_distance,
    kernel_distance,
    prd,
    precision_recall,
)
from glann.pictures import grid, save_labelled_rows, save_png
from glann.priors import draw_prior
from glann.progress import progress
from glann.storage import save_json
from glann.streams import stream, stream_seed

CHUNK_BYTES = 2**30  # images of a row in memory at once
SEARCHED = 20_000  # training images searched for copies, and latents for misses, at most
PICTURED = 10  # images of a row in pictures
LABELS = {
    "train": "training images",
    "reconstructions": "reconstructions",
    "glann": "GLANN",
    "glo_gaussian": "GLO + Gaussian",
    "glo_mixture": "GLO + mixture",
    "glo_flow": "GLO + flow",
    "glo_iresnet": "GLO + i-ResNet",
}
COLUMNS = {
    "frechet": "Fréchet ↓",
    "kid": "KID ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "f8": "F8 ↑",
    "f1_8": "F1/8 ↑",
}

Images = Callable[[slice], NDArray[np.uint8]]
"""``images(part)`` returns these images of a set, uint8 [n, h, w, c], and makes no others."""
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def evaluate(
    params: Params,
    *,
    images: NDArray[np.uint8],
    holdout: NDArray[np.uint8],
    latents: Tensor,
    generator: Generator,
    folder: Path,
) -> None:
    """Measure the model, write metrics.json and plots/, print the table.

    Parameters
    ----------
    params
        All of params.yaml; used are `seed` and `evaluate`.
    images, holdout
        uint8 [n, h, w, c] and [m, h, w, c]: training and hold-out images, may be memory-mapped.
    latents
        float32 [n, d]: row i is the latent of training image i.
    generator
        The trained model.
    folder
        Where the files go. Nothing is written before everything is computed; the stage yields a folder whose
        content appears as a whole.

    Raises
    ------
    GlannError
        If there is nothing to measure: fewer than two images, latents of other images, latents not finite.
    """
    _check(images, holdout, latents, generator)
    seed, count = params.seed, min(params.evaluate.count, len(images))
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
    for prior in dict.fromkeys(params.evaluate.priors):
        modelled = draw_prior(prior, latents, count, seed, params.evaluate, generator.execution)
        sets[f"glo_{prior}"] = decoded(modelled)
    kind = choose_kind(params.evaluate.features, params.evaluate.weights)
    network = feature_network(kind, params.evaluate.weights, holdout, generator.execution)
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

    shown = {name: rows(slice(64)) for name, rows in sets.items()}
    twins = nearest_images(network, shown["glann"][:16], images, pool)
    searched = F.normalize(latents[pool].to(drawn.device), dim=1)
    misses, near = farthest(searched, F.normalize(drawn, dim=1), PICTURED)  # as the decoder takes them
    strange, alike = farthest(features["glann"], features["train"], PICTURED)
    weakest = [
        ("training images\nmissed most", np.asarray(images[pool[misses]])),
        ("nearest sample", generator.decode(drawn[near])),
        ("samples least like\nany training image", generator.decode(drawn[strange])),
        (f"nearest of {count}", np.asarray(images[chosen[alike]])),
    ]
    distances = {"glann": features["glann"], "holdout": reference}

    metrics = {"features": kind, "count": count, "reference_count": len(holdout), **table}
    _write_pictures(folder / "plots", holdout, shown, twins, len(pool))
    save_labelled_rows(folder / "plots" / "weakest.png", weakest)
    _write_curves(folder / "plots" / "prd.json", curves)
    save_json(folder / "plots" / "novelty.json", quantiles(distances, features["train"]))
    save_json(folder / "metrics.json", metrics)
    _print(table, f"{count} images a row against {len(holdout)} hold-out images, {kind} features")


def compare(features: Tensor, reference: Tensor, curve: Curve) -> dict[str, float]:
    """Return one row of the table.

    Parameters
    ----------
    features, reference
        float32 [n, f] and [m, f].
    curve
        Their precision and recall of distributions.

    Returns
    -------
    dict
        A number per key of `COLUMNS`, to six digits: beyond, processors differ.
    """
    values = (
        frechet_distance(features, reference),
        kernel_distance(features, reference),
        *precision_recall(features, reference),
        *density_coverage(features, reference),
        *f_beta(*curve),
    )
    return {column: float(f"{value:.6g}") for column, value in zip(COLUMNS, values, strict=True)}


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


def _write_curves(path: Path, curves: dict[str, Curve]) -> None:
    """Write every row's precision at equal steps of recall: `dvc plots` draws a line per key."""
    steps = np.linspace(0, 1, 101)
    points = [{"recall": round(float(step), 2)} for step in steps]
    for name, (precision, recall) in curves.items():
        for point, step in zip(points, steps, strict=True):
            # The best precision of all points that reach this recall; rounding must not lose the last one.
            point[name] = round(float(precision[recall >= step - 1e-9].max(initial=0)), 4)
    save_json(path, points)


def _write_pictures(
    folder: Path,
    holdout: NDArray[np.uint8],
    shown: dict[str, NDArray[np.uint8]],
    twins: NDArray[np.uint8],
    searched: int,
) -> None:
    """Write the PNG files; `shown` has up to 64 images of each row, `twins` the nearest to glann's first."""
    rows = [(LABELS[name], images[:PICTURED]) for name, images in shown.items()]
    save_labelled_rows(folder / "comparison.png", [("hold-out images", holdout[:PICTURED]), *rows])
    pairs = []
    for part in (slice(0, 8), slice(8, len(twins))):
        if len(twins[part]):
            pairs += [
                ("GLANN", shown["glann"][part]),
                (f"nearest of {searched}\ntraining images", twins[part]),
            ]
    save_labelled_rows(folder / "nearest.png", pairs)
    # Image by image, reconstructions.png shows what became of real.png.
    save_png(folder / "real.png", grid(shown["train"], 8))
    save_png(folder / "reconstructions.png", grid(shown["reconstructions"], 8))
    save_png(folder / "samples.png", grid(shown["glann"], 8))


def _print(table: dict[str, dict[str, float]], title: str) -> None:
    picture = Table("", title=title, box=SIMPLE, padding=(0, 0, 0, 1))
    for name in table:
        picture.add_column(name, justify="right")
    for column, heading in COLUMNS.items():
        picture.add_row(heading, *(f"{row[column]:.4g}" for row in table.values()))
    Console(file=STDOUT).print(picture)  # type: ignore[arg-type]
