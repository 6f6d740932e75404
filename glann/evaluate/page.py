"""The report: one html file that shows everything, and needs no other file and no network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from glann.evaluate.classes import COLUMNS as COLUMNS_OF_CLASSES
from glann.evaluate.comparison import COLUMNS
from glann.evaluate.evaluation import Evaluation
from glann.images.html import figure, write_html

FEW = 200  # hold-out images, below which the metrics say little
CURVES = (
    (
        "glo.png",
        "GLO: the reconstruction loss. If it still falls at the end, more epochs help. It jumps where the "
        "coarse part of the training ends (glo.loss.coarse).",
    ),
    (
        "imle.png",
        "IMLE: the regression loss, and the mean squared distance from a latent to its nearest candidate.",
    ),
    (
        "prd.png",
        "Precision and recall of distributions. The nearer a curve is to the upper right corner, the better. "
        "A curve below that of the reconstructions shows what the mapping loses.",
    ),
    (
        "novelty.png",
        "Distance to the nearest training image. If the curve of the samples is far below that of the "
        "hold-out images, the model copies training images.",
    ),
)
PICTURES = (
    ("real.png", "Training images."),
    ("reconstructions.png", "Their reconstructions: image for image, what the decoder can draw."),
    ("samples.png", "Samples, not hand-picked. Look for broken, blurred and repeated ones."),
    ("comparison.png", "Ten images of each row of the table."),
    ("nearest.png", "Samples, and below each the nearest training image. Identical pairs would be copies."),
    (
        "weakest.png",
        "What the model does worst: the training images that samples miss most, and the samples least like "
        "any training image.",
    ),
)


def write_page(
    path: Path, evaluation: Evaluation, plots: Path, settings: str, labels: Mapping[str, str]
) -> None:
    """Write the report.

    Parameters
    ----------
    path
        The html file.
    evaluation
        The results.
    plots
        The folder with the pictures of `CURVES` and `PICTURES`.
    settings
        The settings of the run, as text.
    labels
        By name of a row of the table: how people call it.
    """
    head = (
        f"Each row compares {evaluation.count} images with {evaluation.reference_count} hold-out images, "
        f"which were never used in training, by {evaluation.features} features. The row of the training "
        "images is what a perfect generator would reach. ↓: lower is better, ↑: higher is better."
    )
    if evaluation.reference_count < FEW:
        head += " With so few hold-out images, only large differences mean anything."
    body = [
        f"<p>{escape(head)}</p>",
        *_table(evaluation.table, COLUMNS, labels),
        *_classes(evaluation.classes),
        "<h2>Pictures</h2>",
        *_figures(plots, PICTURES, "pixels"),
        "<h2>Curves</h2>",
        *_figures(plots, CURVES, "curves"),
        "<h2>Settings</h2>",
        f"<pre>{escape(settings)}</pre>",
    ]
    write_html(path, "GLANN: evaluation", body)


def _table(
    table: Mapping[str, Mapping[str, float]], columns: Mapping[str, str], labels: Mapping[str, str]
) -> list[str]:
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in ["", *columns.values()])
    rows = [
        f"<tr><td>{escape(labels.get(name, name))}</td>"
        + "".join(f"<td>{row[key]:.4g}</td>" if key in row else "<td></td>" for key in columns)
        + "</tr>"
        for name, row in table.items()
    ]
    return ["<table>", f"<tr>{headings}</tr>", *rows, "</table>"]


def _classes(classes: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not classes:
        return []
    there = {key: text for key, text in COLUMNS_OF_CLASSES.items() if any(key in c for c in classes.values())}
    text = (
        "A linear classifier of the features, trained on training images, says how often a class is drawn. "
        "If a class could be asked for, it also says how many of these samples it recognises, to be compared "
        "with hold-out images, and these are compared with the hold-out images of the class."
    )
    return ["<h2>Classes</h2>", f"<p>{text}</p>", *_table(classes, there, {})]


def _figures(plots: Path, shown: Sequence[tuple[str, str]], kind: str) -> list[str]:
    return [figure(name, (plots / name).read_bytes(), text, kind) for name, text in shown]
