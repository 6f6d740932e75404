"""Reporting a comparison: metrics.json, plots/, and a table at the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from glann.evaluate.comparison import COLUMNS
from glann.images.curves import save_curves
from glann.images.png import save_labelled_rows
from glann.peers.comparison import Comparison
from glann.peers.runs import Run
from glann.peers.settings import Name
from glann.runtime.console import STDOUT
from glann.runtime.files import save_json

SAMPLES = 20  # of each model in the picture of samples
IN_A_ROW = 12  # images in other pictures
WIDTH = 150  # letters of the table, where there is no terminal
LABELS = {
    "train": "training images",
    "glann": "GLANN",
    "vae": "VAE",
    "gan": "GAN",
    "wgan_gp": "WGAN-GP",
    "ogan": "O-GAN",
    "energy": "energy",
    "holdout": "hold-out images",
    "nearest": "nearest training image",
    "glann_projection": "GLANN, by error of projection",
    "glann_latents": "GLANN, by distance to latents",
}


def write_peers_report(comparison: Comparison, holdout: NDArray[np.uint8], folder: Path) -> None:
    """Write metrics.json and plots/.

    Parameters
    ----------
    comparison
        The results.
    holdout
        The hold-out images, uint8 [m, h, w, c]; the first ones are shown.
    folder
        An existing folder.
    """
    save_json(folder / "metrics.json", metrics(comparison))
    plots, samples = folder / "plots", comparison.samples
    pictures = plots / "pictures"
    models = {name: rows for name, rows in samples.items() if name not in ("train", "energy_refined")}
    _save_rows(pictures / "grids.png", {"holdout": np.asarray(holdout[:SAMPLES])} | models, SAMPLES)
    _save_rows(pictures / "reconstructions.png", comparison.reconstructed, IN_A_ROW)
    if "energy" in samples:
        before, after = samples["energy"], samples["energy_refined"]
        save_labelled_rows(
            pictures / "refined.png",
            [
                (label(name), images[start : start + IN_A_ROW])
                for start in range(0, len(before), IN_A_ROW)
                for name, images in (("energy", before), ("energy_refined", after))
            ],
        )
    points = [
        {"images": label(model), "fraction": at, "frechet": distance}
        for model, curve in comparison.curves.items()
        for at, distance in curve
    ]
    save_json(plots / "frechet.json", points)
    if comparison.curves:
        # All models have a line, so that each has the same colour in every comparison.
        curves = {model: comparison.curves.get(model, []) for model in ("glann", *get_args(Name))}
        lines = {
            label(model): ([at for at, _ in curve], [distance for _, distance in curve])
            for model, curve in curves.items()
        }
        distance = f"Fréchet distance ({comparison.features})"
        save_curves(plots / "frechet.png", lines, "fraction of the training", distance, logarithmic=True)


def label(name: str) -> str:
    """Return what a row is called in tables and pictures, such as "energy, refined"."""
    model, _, how = name.rpartition("_")
    return LABELS.get(name) or f"{LABELS[model]}, {how}"


def metrics(comparison: Comparison) -> dict[str, Any]:
    """Return what metrics.json has of a comparison: no measured times, so that it is reproducible.

    Rows of models also say how many trainings there were (``runs``), how many of them ``failed``, how many
    ``images`` a training has seen, how long that takes by `glann peers` (``seconds``), how samples relate to
    training images (``frechet_train``, ``novelty``), and how far the Fréchet distances of two or more lie
    apart (``spread``).
    """
    found: dict[str, Any] = {
        "features": comparison.features,
        "count": comparison.count,
        "reference_count": comparison.reference_count,
    }
    for name, row in comparison.table.items():
        found[name] = {**row}
        found[name] |= comparison.to_training.get(name, {})
        if name in comparison.spread:
            found[name]["spread"] = comparison.spread[name]["frechet"]
    for name in dict.fromkeys(run.model for run in comparison.runs):
        found[name] = found.get(name, {}) | _trainings([run for run in comparison.runs if run.model == name])
    if comparison.acceptance is not None:
        found["energy_refined"]["acceptance"] = comparison.acceptance
    return found | {"reconstructions": comparison.reconstructions, "foreign": comparison.foreign}


def _trainings(runs: Sequence[Run]) -> dict[str, float]:
    told: dict[str, float] = {"runs": len(runs), "failed": sum(run.failed is not None for run in runs)}
    if seen := [run.images for run in runs if run.images is not None]:
        told["images"] = round(sum(seen) / len(seen))
    if timed := [run.seconds for run in runs if run.seconds is not None]:
        told["seconds"] = sum(timed) / len(timed)
    return told


def print_peers(comparison: Comparison) -> None:
    """Print the tables on stdout, and why trainings failed."""
    console = Console(file=STDOUT)  # type: ignore[arg-type]
    if not console.is_terminal:
        console = Console(file=STDOUT, width=WIDTH)  # type: ignore[arg-type]
    found = metrics(comparison)
    title = (
        f"{comparison.count} images a row against {comparison.reference_count} hold-out images, "
        f"{comparison.features} features"
    )
    headings = {
        **COLUMNS,
        "spread": "Fréchet spread",
        "frechet_train": "Fréchet to training",
        "novelty": "novelty → 1",
    }
    console.print(_table(title, headings, {name: found[name] for name in comparison.table}))
    headings = {
        "runs": "runs",
        "failed": "failed runs",
        "images": "images seen",
        "seconds": "seconds, as timed",
        "speed": "samples/s, on this machine",
    }
    rows = {
        name: found.get(name, {}) | ({"speed": comparison.speed[name]} if name in comparison.speed else {})
        for name in dict.fromkeys([*(run.model for run in comparison.runs), *comparison.speed])
    }
    console.print(_table("trainings", headings, rows))
    k = len(comparison.reconstructed["holdout"])
    headings = {"pixels": "grey levels ↓", "features": "features ↓"}
    console.print(_table(f"reconstructions of {k} hold-out images", headings, comparison.reconstructions))
    headings = {"auc": "ROC AUC ↑", "holdout": "hold-out", "foreign": "foreign"}
    console.print(_table("foreign images told from hold-out images", headings, comparison.foreign))
    for run in comparison.runs:
        if run.failed:
            why = run.failed.removeprefix(f"{run.model}: ")
            console.print(f"{label(run.model)}, seed {run.seed}: failed: {why}", markup=False)


def _table(title: str, headings: Mapping[str, str], rows: Mapping[str, Mapping[str, float]]) -> Table:
    picture = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 0, 0, 1))
    picture.add_column("", no_wrap=True)
    shown = [key for key in headings if any(key in row for row in rows.values())]
    for key in shown:
        picture.add_column(headings[key], justify="right")
    for name, row in rows.items():
        picture.add_row(label(name), *(_number(row[key]) if key in row else "" for key in shown))
    return picture


def _number(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"


def _save_rows(path: Path, rows: Mapping[str, NDArray[np.uint8]], count: int) -> None:
    """Draw the first `count` images of sets with their labels, a row for each set."""
    save_labelled_rows(path, [(label(name), images[:count]) for name, images in rows.items()])
