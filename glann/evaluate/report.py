"""Reporting an evaluation: metrics.json, plots/, report.html, and a table at the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glann.evaluate.classes import COLUMNS as COLUMNS_OF_CLASSES
from glann.evaluate.comparison import COLUMNS, Curve
from glann.evaluate.evaluation import Evaluation
from glann.evaluate.page import write_page
from glann.evaluate.priors import PRIORS
from glann.images.curves import save_curves
from glann.images.png import grid, save_labelled_rows, save_png
from glann.runtime.console import STDOUT
from glann.runtime.files import save_json

IN_A_ROW = 10  # images of a row in comparison.png
MOST_PRINTED = 20  # classes
PAIRS_IN_A_ROW = 16  # samples and their nearest images in nearest.png
LABELS = {
    "train": "training images",
    "reconstructions": "reconstructions",
    "glann": "GLANN",
    **{f"glo_{name}": prior.label for name, prior in PRIORS.items()},
}
LOSSES = {"glo": "reconstruction loss", "imle": "distance, nearest squared"}
"""By stage: what its losses are."""


def write_report(
    evaluation: Evaluation,
    holdout: NDArray[np.uint8],
    losses: Mapping[str, Sequence[Mapping[str, float]]],
    settings: str,
    folder: Path,
) -> None:
    """Write metrics.json, plots/ and report.html.

    Parameters
    ----------
    evaluation
        The results.
    holdout
        The hold-out images, uint8 [m, h, w, c]; the first ones are shown.
    losses
        The histories of `train_glo` and `fit_imle`, by name: "glo" and "imle".
    settings
        The settings of the run, as text.
    folder
        An existing folder.
    """
    plots, shown = folder / "plots", evaluation.shown
    rows = [(LABELS[name], images[:IN_A_ROW]) for name, images in shown.items()]
    save_labelled_rows(plots / "comparison.png", [("hold-out images", holdout[:IN_A_ROW]), *rows])
    pairs = []
    for start in range(0, len(evaluation.nearest), PAIRS_IN_A_ROW):
        part = slice(start, min(start + PAIRS_IN_A_ROW, len(evaluation.nearest)))
        found = f"nearest of {evaluation.searched}\ntraining images"
        pairs += [("GLANN", shown["glann"][part]), (found, evaluation.nearest[part])]
    save_labelled_rows(plots / "nearest.png", pairs)
    save_labelled_rows(plots / "weakest.png", evaluation.weakest)
    # Image i of reconstructions.png is the reconstruction of image i of real.png.
    for name, file in (("train", "real"), ("reconstructions", "reconstructions"), ("glann", "samples")):
        save_png(plots / f"{file}.png", grid(shown[name], 8))
    points = curve_points(evaluation.curves)
    save_json(plots / "prd.json", points)
    save_json(plots / "novelty.json", evaluation.novelty)
    _draw_curves(plots, points, evaluation.novelty, losses)
    write_page(folder / "report.html", evaluation, plots, settings, LABELS)
    counts = {"count": evaluation.count, "reference_count": evaluation.reference_count}
    metrics = {"features": evaluation.features, **counts, **evaluation.table}
    if evaluation.classes:
        metrics["classes"] = evaluation.classes
    save_json(folder / "metrics.json", metrics)


def _draw_curves(
    plots: Path,
    points: Sequence[Mapping[str, Any]],
    novelty: Sequence[Mapping[str, float]],
    losses: Mapping[str, Sequence[Mapping[str, float]]],
) -> None:
    for name, history in losses.items():
        epochs = [entry["epoch"] for entry in history]
        keys = [key for key in history[0] if key != "epoch"]
        lines = {key: (epochs, [entry[key] for entry in history]) for key in keys}
        save_curves(plots / f"{name}.png", lines, "epoch", LOSSES[name])
    by_row = {
        LABELS[name]: [point for point in points if point["images"] == name]
        for name in dict.fromkeys(point["images"] for point in points)
    }
    lines = {
        label: ([point["recall"] for point in row], [point["precision"] for point in row])
        for label, row in by_row.items()
    }
    save_curves(plots / "prd.png", lines, "recall", "precision")
    percent = [entry["percent"] for entry in novelty]
    lines = {
        label: (percent, [entry[key] for entry in novelty])
        for label, key in (("GLANN", "glann"), ("hold-out images", "holdout"))
    }
    save_curves(plots / "novelty.png", lines, "share of the images, percent", "distance of features")


def curve_points(curves: dict[str, Curve]) -> list[dict[str, Any]]:
    """Return each row's precision at evenly spaced recalls, a dictionary per point."""
    points = []
    for name, (precision, recall) in curves.items():
        for step in np.linspace(0, 1, 101):
            # The best precision among the points with at least this recall, up to rounding.
            best = float(precision[recall >= step - 1e-9].max(initial=0))
            points.append({"images": name, "recall": round(float(step), 2), "precision": round(best, 4)})
    return points


def print_table(evaluation: Evaluation) -> None:
    """Print the table on stdout, with a column per set of images."""
    title = (
        f"{evaluation.count} images a row against {evaluation.reference_count} hold-out images, "
        f"{evaluation.features} features"
    )
    picture = Table("", title=title, box=SIMPLE, padding=(0, 0, 0, 1))
    for name in evaluation.table:
        picture.add_column(name, justify="right")
    for column, heading in COLUMNS.items():
        picture.add_row(heading, *(f"{row[column]:.4g}" for row in evaluation.table.values()))
    console = Console(file=STDOUT)  # type: ignore[arg-type]
    console.print(picture)
    if evaluation.classes:
        console.print(_table_of_classes(evaluation.classes))


def _table_of_classes(classes: Mapping[str, Mapping[str, float]]) -> Table:
    more = f", {MOST_PRINTED} of {len(classes)}" * (len(classes) > MOST_PRINTED)
    picture = Table(title=f"classes{more}", box=SIMPLE, padding=(0, 0, 0, 1))
    picture.add_column("class", no_wrap=True, max_width=20)
    rows = [*classes.items()][:MOST_PRINTED]
    shown = COLUMNS_OF_CLASSES.keys() - {"images", "holdout"}  # the numbers are in the report
    columns = [key for key in COLUMNS_OF_CLASSES if key in shown and any(key in row for _, row in rows)]
    for column in columns:
        picture.add_column(COLUMNS_OF_CLASSES[column], justify="right")
    for name, row in rows:
        picture.add_row(escape(name), *(f"{row[key]:.3g}" if key in row else "" for key in columns))
    return picture
