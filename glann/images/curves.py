"""Curves as PNG files."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from glann.runtime.files import replacing

# Okabe & Ito (2008): these can be told apart with any kind of colour vision, and by their strokes in grey.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STROKES = ("-", "--", "-", "-.", ":", "--", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""By label: x and y of each point. A line without points is left out, but keeps its place in `COLOURS`."""


def save_curves(
    path: str | Path, lines: Lines, x_label: str, y_label: str, logarithmic: bool = False
) -> None:
    """Draw curves in one picture, and write it as a PNG file; for the rest see `curves`."""
    with replacing(path) as temporary:
        temporary.write_bytes(curves(lines, x_label, y_label, logarithmic))


def curves(lines: Lines, x_label: str, y_label: str, logarithmic: bool = False) -> bytes:
    """Draw curves in one picture.

    Parameters
    ----------
    lines
        The curves.
    x_label, y_label
        What the axes show.
    logarithmic
        Whether both axes are, with a mark at each point.

    Returns
    -------
    bytes
        A PNG file.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (takes half a second, needed only here)

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for i, (label, (x, y)) in enumerate(lines.items()):
        if not x:
            continue
        axes.plot(
            x,
            y,
            color=COLOURS[i % len(COLOURS)],
            linestyle=STROKES[i % len(STROKES)],
            marker=MARKERS[i % len(MARKERS)] if logarithmic else None,
            markersize=4,
            label=label,
        )
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", subs=[2, 5])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")  # the range may contain no power of ten
    elif all(isinstance(at, int) for x, _ in lines.values() for at in x):  # epochs
        axes.locator_params("x", integer=True)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    drawn = len(axes.get_lines())
    if drawn > 1 and logarithmic:  # steep curves leave no room
        figure.legend(frameon=False, loc="outside right center")
    elif drawn > 1:
        axes.legend(frameon=False)
    file = BytesIO()
    # Without the Software tag the file does not depend on the version of matplotlib.
    figure.savefig(file, metadata={"Software": None})
    return file.getvalue()
