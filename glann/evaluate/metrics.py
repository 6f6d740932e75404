"""Metrics of two sets of feature vectors: generated `features` [n, f] and a `reference` [m, f].

All are computed in float64 on the CPU. Random draws depend on seeds only, and no global generator is used.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from glann.runtime.randomness import stream_seed

BLOCK = 1000  # rows of a distance matrix in memory at once
ANGLES = 1001  # points on a curve of precision and recall


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to the two sets (Heusel et al., arXiv:1706.08500, eq. 6).

    ``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)``. With C = RᵀR, R from a QR decomposition of the centred rows,
    the last trace is the sum of the singular values of R1 R2ᵀ. Unlike the usual eigenvalues of C1 C2, these
    lose no digits if a covariance is singular, as it is with fewer rows than features.

    Parameters
    ----------
    features, reference
        float [n, f] and [m, f]; n and m are at least 2.

    Returns
    -------
    float
        At least 0, in squared units of the features.
    """
    (mean_1, root_1), (mean_2, root_2) = _gaussian(features), _gaussian(reference)
    cross = torch.linalg.svdvals(root_1 @ root_2.T).sum()
    distance = (mean_1 - mean_2).square().sum() + root_1.square().sum() + root_2.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [f] and R [min(n, f), f] with RᵀR the unbiased covariance."""
    features = features.double()
    mean = features.mean(0)
    root = torch.linalg.qr(features - mean, mode="r").R
    return mean, root / (len(features) - 1) ** 0.5


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """KID: unbiased MMD², kernel k(x, y) = (xᵀy / f + 1)³ (Bińkowski et al., arXiv:1801.01401, section 4).

    It is computed over all pairs. Averages over random subsets of 1000, which are common, have the same
    expectation but more noise.

    Parameters
    ----------
    features, reference
        float [n, f] and [m, f]; n and m are at least 2.

    Returns
    -------
    float
        For two sets from one distribution it is 0 on average, so it may be negative.
    """
    features, reference = features.double(), reference.double()
    within = _mean_kernel(features) + _mean_kernel(reference)
    across = _kernel_sum(features, reference) / (len(features) * len(reference))
    return within - 2 * across


def _mean_kernel(rows: Tensor) -> float:
    """Return the mean of k over all pairs of different rows."""
    n, f = rows.shape
    with_itself = float((rows.square().sum(1) / f + 1).pow(3).sum())
    return (_kernel_sum(rows, rows) - with_itself) / (n * (n - 1))


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return sum(float((block @ b.T / b.shape[1] + 1).pow(3).sum()) for block in a.split(BLOCK))


def precision_recall(features: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al., arXiv:1904.06991, section 2).

    Each is the fraction of one set that lies in the balls around the rows of the other.

    Parameters
    ----------
    features, reference
        float [n, f] and [m, f].
    k
        The ball of a row reaches to its k-th neighbour in its own set. Lowered if a set has fewer rows.

    Returns
    -------
    tuple
        Precision (the fraction of `features`) and recall (the fraction of `reference`), 0 to 1.
    """
    result = prc_features_to_metric(
        features.double(),
        reference.double(),
        prc_neighborhood=min(k, len(features) - 1, len(reference) - 1),
        prc_batch_size=BLOCK,
        save_cpu_ram=True,
        verbose=False,
    )
    return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


def density_coverage(features: Tensor, reference: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage (Naeem et al., arXiv:2002.09797, section 3).

    They are less sensitive to outliers than precision and recall.

    Parameters
    ----------
    features, reference
        float [n, f] and [m, f].
    k
        The ball of a reference row reaches to its k-th neighbour. Lowered if there are fewer rows.

    Returns
    -------
    tuple
        Density: the mean number of reference balls that contain a feature row, divided by k; above 1 in
        dense regions. Coverage: the fraction of reference balls that contain a feature row, 0 to 1.
    """
    features, reference = features.double(), reference.double()
    k = min(k, len(reference) - 1)
    held, covered = 0, 0
    for block in reference.split(BLOCK):
        # The nearest row is the row itself, at distance 0.
        radii = torch.cdist(block, reference).kthvalue(k + 1).values
        inside = torch.cdist(block, features) < radii[:, None]  # [block, n]
        held += int(inside.sum())
        covered += int(inside.any(dim=1).sum())
    return held / (k * len(features)), covered / len(reference)


def prd(
    features: Tensor, reference: Tensor, seed: int = 0, clusters: int = 20, runs: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall of distributions, a curve (Sajjadi et al., arXiv:1806.00035, section 3).

    Both sets are clustered together by k-means. With P and Q the fractions of reference and features in each
    cluster, ``precision(λ) = Σ min(λ P, Q)`` and ``recall(λ) = precision(λ) / λ``. The curve is an average
    over several runs of k-means.

    Parameters
    ----------
    features, reference
        float [n, f] and [m, f]. Each set has half of the weight in k-means, so n and m may differ.
    seed
        Seed of k-means.
    clusters, runs
        Number of clusters, and of runs.

    Returns
    -------
    tuple
        Precision (rising) and recall (falling), float64 [ANGLES], 0 to 1.
    """
    both = torch.cat([features, reference]).numpy()
    generated = np.arange(len(both)) < len(features)
    weight = np.where(generated, 1 / generated.sum(), 1 / (~generated).sum()) * len(both) / 2
    slopes = np.tan(np.linspace(0, np.pi / 2, ANGLES + 2)[1:-1])  # λ
    curve = np.zeros(ANGLES)
    for run in range(runs):
        k_means = MiniBatchKMeans(
            min(clusters, len(both)), n_init=1, random_state=stream_seed(seed, "prd", run) % 2**32
        )
        with threadpool_limits(1), warnings.catch_warnings():  # parallel sums have no fixed order
            warnings.simplefilter("ignore", ConvergenceWarning)  # about fewer distinct rows than clusters
            labels = k_means.fit(both, sample_weight=weight).labels_
        q = np.bincount(labels[generated], minlength=clusters) / generated.sum()
        p = np.bincount(labels[~generated], minlength=clusters) / (~generated).sum()
        curve += np.minimum(slopes[:, None] * p, q).sum(1) / runs
    return curve.clip(0, 1), (curve / slopes).clip(0, 1)


def f_beta(
    precision: NDArray[np.float64], recall: NDArray[np.float64], beta: float = 8
) -> tuple[float, float]:
    """Return the largest F_β and F_1/β of the curve; with β = 8 they weigh recall and precision (ibid.)."""

    def largest(b: float) -> float:
        return float(np.max((1 + b**2) * precision * recall / np.maximum(b**2 * precision + recall, 1e-10)))

    return largest(beta), largest(1 / beta)
