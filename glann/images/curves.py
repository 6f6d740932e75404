"""Curves as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from glann.runtime.files import replacing

# Okabe & Ito (2008): these can be told apart with any kind of colour vision, and by their strokes in grey.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STROKES = ("-", "--", "-", "-.", ":", "--", "-.")


def save_curves(
    path: str | Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
) -> None:
    """Draw curves in one picture, and write it as a PNG file.

    Parameters
    ----------
    path
        The PNG file.
    curves
        By label: x and y of each point.
    x_label, y_label
        What the axes show.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (takes half a second, needed only here)

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for i, (label, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, color=COLOURS[i % len(COLOURS)], linestyle=STROKES[i % len(STROKES)], label=label)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False)
    with replacing(path) as temporary:
        # Without the Software tag the file does not depend on the version of matplotlib.
        figure.savefig(temporary, metadata={"Software": None})
