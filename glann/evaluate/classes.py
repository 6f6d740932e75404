"""What the classes of the images say about samples, by a classifier that is trained on real images."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor

from glann.evaluate.metrics import kernel_distance, precision_recall
from glann.images.classes import Classes

MOST = 100  # classes; with more, there are too few images of each
FEWEST = 10  # images of a class, with which others are compared
COLUMNS = {
    "images": "images",
    "holdout": "held out",
    "share": "share",
    "drawn": "drawn",
    "accuracy_holdout": "acc. held out",
    "accuracy": "acc. drawn",
    "kid": "KID ↓",
    "precision": "prec.",
    "recall": "recall",
}
"""Keys in metrics.json, and their headings. The last four are of conditional models only."""


def by_class(
    classes: Classes,
    chosen: NDArray[np.int64],
    train: Tensor,
    holdout: Tensor,
    samples: Tensor,
    asked: NDArray[np.int64] | None,
) -> dict[str, dict[str, float]]:
    """Describe the samples of each class.

    Parameters
    ----------
    classes
        Of all training and hold-out images.
    chosen
        int64 [n]: the training images with the features `train`.
    train, holdout, samples
        Features of training images float32 [n, f], hold-out images [m, f] and samples [s, f].
    asked
        int64 [s]: the class that was asked for with each sample. None: the model is not conditional.

    Returns
    -------
    dict
        By name of the class, a number per key of `COLUMNS`, to six digits; empty if there are more than 100
        classes, or fewer than two among the chosen images. Numbers that would come from fewer than 10 images
        are left out.
    """
    if len(classes.names) > MOST:
        return {}
    labels = classes.images[chosen]
    if len(np.unique(labels)) < 2:
        return {}
    answer = _classifier(train, labels)
    of_holdout, of_samples = (answer(rows) for rows in (holdout, samples))
    return {
        name: _rounded(_one_class(i, classes, holdout, samples, asked, of_holdout, of_samples))
        for i, name in enumerate(classes.names)
    }


def _one_class(
    i: int,
    classes: Classes,
    holdout: Tensor,
    samples: Tensor,
    asked: NDArray[np.int64] | None,
    of_holdout: NDArray[np.int64],
    of_samples: NDArray[np.int64],
) -> dict[str, float]:
    training, real = classes.images == i, classes.holdout == i
    found = {
        "images": float(training.sum()),
        "holdout": float(real.sum()),
        "share": training.mean(),
        "drawn": (of_samples == i).mean(),
    }
    if real.sum() >= FEWEST:
        found["accuracy_holdout"] = (of_holdout[real] == i).mean()
    if asked is not None and (asked == i).sum() >= FEWEST:
        drawn = asked == i
        found["accuracy"] = (of_samples[drawn] == i).mean()
        if real.sum() >= FEWEST:
            own, others = samples[drawn], holdout[real]
            found["kid"] = kernel_distance(own, others)
            found["precision"], found["recall"] = precision_recall(own, others)
    return found


def _classifier(features: Tensor, labels: NDArray[np.int64]) -> Callable[[Tensor], NDArray[np.int64]]:
    """Return a function from features [n, f] to classes int64 [n]: a logistic regression."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 (takes a second)

    # All features are divided by one number: those that hardly vary are often mere noise.
    mean = features.double().mean(dim=0)
    spread = (features.double() - mean).square().mean().sqrt().clamp_min(1e-12)

    def scaled(rows: Tensor) -> NDArray[np.float64]:
        return np.asarray(((rows.double() - mean) / spread).cpu())

    linear = LogisticRegression(max_iter=1000)
    with threadpool_limits(1):  # parallel sums have no fixed order
        linear.fit(scaled(features), labels)
    return lambda rows: np.asarray(linear.predict(scaled(rows)))


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.6g}") for key, value in found.items()}
