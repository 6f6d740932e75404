"""The report: one html file that shows everything, and needs no other file and no network."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from glann.evaluate.comparison import COLUMNS
from glann.evaluate.evaluation import Evaluation
from glann.runtime.files import replacing

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; }
h1, h2 { line-height: 1.2; }
img { max-width: 100%; }
.curves img { width: 32rem; }
.pixels img { image-rendering: pixelated; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figcaption { color: #555; }
figure { margin: 1.5rem 0; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""

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
        "Distance to the nearest training image. If samples lie far to the left of the hold-out images, the "
        "model copies training images.",
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
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>GLANN: evaluation</title><style>{STYLE}</style></head><body>",
        "<h1>GLANN: evaluation</h1>",
        f"<p>{escape(head)}</p>",
        *_table(evaluation.table, labels),
        "<h2>Pictures</h2>",
        *_figures(plots, PICTURES, "pixels"),
        "<h2>Curves</h2>",
        *_figures(plots, CURVES, "curves"),
        "<h2>Settings</h2>",
        f"<pre>{escape(settings)}</pre>",
        "</body></html>",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _table(table: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]) -> list[str]:
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in ["", *COLUMNS.values()])
    rows = [
        f"<tr><td>{escape(labels[name])}</td>"
        + "".join(f"<td>{row[column]:.4g}</td>" for column in COLUMNS)
        + "</tr>"
        for name, row in table.items()
    ]
    return ["<table>", f"<tr>{headings}</tr>", *rows, "</table>"]


def _figures(plots: Path, shown: Sequence[tuple[str, str]], kind: str) -> list[str]:
    return [
        f'<figure class="{kind}"><img alt="{escape(name)}" src="data:image/png;base64,'
        f'{b64encode((plots / name).read_bytes()).decode()}"><figcaption>{escape(text)}</figcaption></figure>'
        for name, text in shown
    ]
