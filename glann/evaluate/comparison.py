"""The metrics of the table, and their computation for one row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glann.evaluate.metrics import (
    density_coverage,
    f_beta,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from glann.evaluate.sharpness import relative_sharpness

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Precision and recall of distributions, see `prd`."""


@dataclass(frozen=True)
class Described:
    """A set of images, as the metrics see it.

    Attributes
    ----------
    features
        float32 [n, f].
    sharpness
        Variance of each image's Laplacian, float32 [n].
    """

    features: Tensor
    sharpness: Tensor


@dataclass(frozen=True)
class Measure:
    """A metric, or several metrics that are computed together.

    Attributes
    ----------
    columns
        Keys in metrics.json, and their headings in the printed table.
    compute
        Takes a set of images, the hold-out images and their curve. Returns a number per column.
    """

    columns: Mapping[str, str]
    compute: Callable[[Described, Described, Curve], tuple[float, ...]]


MEASURES = (
    Measure(
        {"frechet": "Fréchet ↓"}, lambda rows, real, curve: (frechet_distance(rows.features, real.features),)
    ),
    Measure({"kid": "KID ↓"}, lambda rows, real, curve: (kernel_distance(rows.features, real.features),)),
    Measure(
        {"precision": "precision ↑", "recall": "recall ↑"},
        lambda rows, real, curve: precision_recall(rows.features, real.features),
    ),
    Measure(
        {"density": "density ↑", "coverage": "coverage ↑"},
        lambda rows, real, curve: density_coverage(rows.features, real.features),
    ),
    Measure({"f8": "F8 ↑", "f1_8": "F1/8 ↑"}, lambda rows, real, curve: f_beta(*curve)),
    Measure(
        {"sharpness": "sharpness → 1"},
        lambda rows, real, curve: (relative_sharpness(rows.sharpness, real.sharpness),),
    ),
)
COLUMNS = {key: heading for measure in MEASURES for key, heading in measure.columns.items()}


def compare(rows: Described, reference: Described, curve: Curve) -> dict[str, float]:
    """Compute one row of the table.

    Parameters
    ----------
    rows, reference
        The set of images, and the hold-out images.
    curve
        Their precision and recall of distributions.

    Returns
    -------
    dict
        A number per key of `COLUMNS`, to six digits, since processors differ beyond.
    """
    values = [value for measure in MEASURES for value in measure.compute(rows, reference, curve)]
    return {column: float(f"{value:.6g}") for column, value in zip(COLUMNS, values, strict=True)}
