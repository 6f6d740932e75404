"""Reporting an evaluation: metrics.json, plots/, and a table at the terminal."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from glann.evaluate.comparison import COLUMNS, Curve
from glann.evaluate.evaluation import Evaluation
from glann.evaluate.priors import PRIORS
from glann.images.png import grid, save_labelled_rows, save_png
from glann.runtime.console import STDOUT
from glann.runtime.files import save_json

IN_A_ROW = 10  # images of a row in comparison.png
PAIRS_IN_A_ROW = 16  # samples and their nearest images in nearest.png
LABELS = {
    "train": "training images",
    "reconstructions": "reconstructions",
    "glann": "GLANN",
    **{f"glo_{name}": prior.label for name, prior in PRIORS.items()},
}


def write_report(evaluation: Evaluation, holdout: NDArray[np.uint8], folder: Path) -> None:
    """Write metrics.json and plots/.

    Parameters
    ----------
    evaluation
        The results.
    holdout
        The hold-out images, uint8 [m, h, w, c]; the first ones are shown.
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
    save_json(plots / "prd.json", curve_points(evaluation.curves))
    save_json(plots / "novelty.json", evaluation.novelty)
    counts = {"count": evaluation.count, "reference_count": evaluation.reference_count}
    save_json(folder / "metrics.json", {"features": evaluation.features, **counts, **evaluation.table})


def curve_points(curves: dict[str, Curve]) -> list[dict[str, float]]:
    """Return each row's precision at evenly spaced recalls; `dvc plots` draws a line per key."""
    steps = np.linspace(0, 1, 101)
    points = [{"recall": round(float(step), 2)} for step in steps]
    for name, (precision, recall) in curves.items():
        for point, step in zip(points, steps, strict=True):
            # The best precision among the points with at least this recall, up to rounding.
            point[name] = round(float(precision[recall >= step - 1e-9].max(initial=0)), 4)
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
    Console(file=STDOUT).print(picture)  # type: ignore[arg-type]
