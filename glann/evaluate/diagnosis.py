"""Where a model is weak: images that it misses, samples unlike any image, and copies of images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glann.evaluate.features import BATCH, Network
from glann.images.tensors import thumbnails
from glann.neighbors.search import nearest
from glann.runtime.progress import progress

SHORTLIST = 50  # training images per sample, nearest in pixels, whose features are compared
THUMBNAIL = 16  # px, for the comparison in pixels


def farthest(queries: Tensor, database: Tensor, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the queries that are farthest from all rows of a database.

    With training latents as queries and latents of samples as database, these are the images that the model
    misses. With features of samples and of images, these are the samples unlike any image.

    Parameters
    ----------
    queries, database
        float32 [q, d] and [m, d], on one device.
    count
        Number of queries to find.

    Returns
    -------
    tuple
        Rows of `queries`, int64 [count], the farthest first, and the nearest row of `database` for each.
    """
    distances, rows = nearest(queries, database)
    worst = distances[:, 0].topk(min(count, len(queries))).indices
    return worst.cpu().numpy(), rows[worst, 0].cpu().numpy()


def quantiles(sets: dict[str, Tensor], images: Tensor) -> list[dict[str, float]]:
    """Return quantiles of the distance from the rows of each set to their nearest image.

    The samples of a model that copies are nearer to training images than unseen images are.

    Parameters
    ----------
    sets
        Features float32 [m, f] of each set.
    images
        Features of training images, float32 [n, f].

    Returns
    -------
    list
        For 0, 1, ... 100: {"percent": 0, name: distance in units of the features, six digits, ...}.
    """
    steps = np.linspace(0, 1, 101)
    points: list[dict[str, float]] = [{"percent": round(100 * step)} for step in steps]
    for name, rows in sets.items():
        distances = nearest(rows, images)[0][:, 0].clamp_min(0).sqrt().cpu().numpy()
        for point, value in zip(points, np.quantile(distances, steps), strict=True):
            point[name] = float(f"{value:.6g}")
    return points


def nearest_images(
    network: Network, samples: NDArray[np.uint8], images: NDArray[np.uint8], pool: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Find the training image with the nearest features for each sample; it would show a copy.

    Only the images nearest in pixels are candidates, since computing the features of all images would take
    minutes. A copy is near in both.

    Parameters
    ----------
    network
        Turns images into features.
    samples
        uint8 [q, h, w, c].
    images
        The training images, uint8 [n, h, w, c].
    pool
        Rows of `images` to search, int64 [p], ascending.

    Returns
    -------
    NDArray
        uint8 [q, h, w, c].
    """
    with progress("nearest training images", len(pool), "images") as advance:
        thumbs = []
        for rows in np.array_split(pool, -(-len(pool) // BATCH)):
            thumbs.append(thumbnails(images[rows], THUMBNAIL))
            advance(len(rows))
    _, near = nearest(thumbnails(samples, THUMBNAIL), torch.cat(thumbs), k=min(SHORTLIST, len(pool)))
    candidates = pool[np.unique(near.numpy())]
    features = []
    with progress("features of candidates", len(candidates), "images") as advance:
        for rows in np.array_split(candidates, -(-len(candidates) // BATCH)):
            features.append(network(np.asarray(images[rows])))
            advance(len(rows))
    _, found = nearest(network(samples), torch.cat(features))
    return np.asarray(images[candidates[found[:, 0].numpy()]])
