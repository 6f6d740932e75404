"""Feature vectors of images for the metrics: Inception, VGG-16, or principal components of the pixels."""

import sys
import warnings
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from glann.errors import GlannError
from glann.images.tensors import thumbnails, to_float, upload
from glann.networks.vgg import normalize_for_vgg, vgg16
from glann.runtime.compute import Execution
from glann.runtime.progress import progress

BATCH = 64  # images per forward pass
VGG_SIDES = (32, 256)  # px; smaller images are enlarged, larger ones are reduced
PIXELS_SIDE = 32  # px
PIXELS_COMPONENTS = 64

Network = Callable[[NDArray[np.uint8]], Tensor]
"""``network(batch)`` turns uint8 [b, h, w, c] into features float32 [b, f] on the CPU."""


def choose_kind(kind: str, weights: str | None) -> str:
    """Resolve `auto`: inception if its weights are on this machine (without a download), otherwise pixels."""
    if kind != "auto":
        return kind
    return "inception" if weights or inception_cache().is_file() else "pixels"


def inception_cache() -> Path:
    """Return the file where torch-fidelity caches its Inception weights; $TORCH_HOME changes the folder."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name


def feature_network(
    kind: str, weights: str | None, reference: NDArray[np.uint8], execution: Execution
) -> Network:
    """Load or fit the network that turns images into features.

    Parameters
    ----------
    kind
        inception (2048 features, FID's network), vgg (512: means of conv5_3's activations) or pixels
        (at most 64: principal components of the reference images).
    weights
        File of weights for inception (torch-fidelity's .pth) or vgg (see `vgg16`). None: the cached file, or
        a download.
    reference
        The images to which `pixels` is fitted, uint8 [m, h, w, c].
    execution
        Device and precision. Inception always runs in float32, so that its FID agrees with published ones.

    Raises
    ------
    GlannError
        If weights are missing and cannot be downloaded, or belong to another network.
    """
    if kind == "inception":
        return _inception(weights, execution)
    if kind == "vgg":
        return _vgg(weights, execution)
    return _pixels(reference)


def extract(network: Network, images: NDArray[np.uint8], title: str) -> Tensor:
    """Compute the features of images, batch by batch.

    Parameters
    ----------
    network
        From `feature_network`.
    images
        uint8 [n, h, w, c]; may be memory-mapped, since only one batch is read at a time.
    title
        Title of the progress bar.

    Returns
    -------
    Tensor
        float32 [n, f].
    """
    features = []
    with progress(title, len(images), "images") as advance:
        for start in range(0, len(images), BATCH):
            features.append(network(images[start : start + BATCH]))
            advance(len(features[-1]))
    return torch.cat(features)


def _inception(weights: str | None, execution: Execution) -> Network:
    path = Path(weights) if weights else inception_cache()
    if weights is None and not path.is_file():
        _download_inception(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise GlannError(
            f"evaluate.weights: {path}: {what}; name torch-fidelity's Inception weights, or null"
        )
    try:
        # torch-fidelity unpickles any file. A file that passes this check holds nothing but tensors.
        with warnings.catch_warnings():  # about formats that torch.load tries first
            warnings.simplefilter("ignore")
            torch.load(path, map_location="cpu", weights_only=True)
        with torch.random.fork_rng(devices=[]):  # it draws random weights before it loads these
            inception = FeatureExtractorInceptionV3(
                "inception", ["2048"], feature_extractor_weights_path=str(path)
            )
    except (OSError, MemoryError):
        raise
    except Exception:  # unpicklers raise all kinds of errors on other files
        if weights is None:
            raise GlannError(f"{path}: damaged; delete it, and it is downloaded again") from None
        raise GlannError(
            f"evaluate.weights: {path}: not torch-fidelity's Inception weights; download {URL_INCEPTION_V3}"
        ) from None
    inception = inception.to(execution.device)

    @torch.no_grad()
    def network(batch: NDArray[np.uint8]) -> Tensor:
        images = execution.to_device(torch.tensor(np.asarray(batch))).permute(0, 3, 1, 2)
        images = images.expand(-1, 3, -1, -1)
        return inception(images)[0].float().cpu()

    return network


def _download_inception(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), progress=sys.stderr.isatty())
    except (OSError, HTTPException) as error:
        raise GlannError(
            f"evaluate.features: inception, but its weights could not be downloaded ({error}); download "
            f"{URL_INCEPTION_V3} elsewhere and put it at {path}, name it in evaluate.weights, "
            "or choose evaluate.features: vgg or pixels"
        ) from None


def _vgg(weights: str | None, execution: Execution) -> Network:
    vgg = vgg16(weights, levels=5).to(execution.device).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def network(batch: NDArray[np.uint8]) -> Tensor:
        images = to_float(upload(batch, execution))
        side, (smallest, largest) = images.shape[-1], VGG_SIDES
        side = min(side * -(-smallest // side), largest)
        if side != images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        with execution.autocast():
            activations = vgg(normalize_for_vgg(images))  # [b, 512, side / 16, side / 16]
        return activations.float().mean((2, 3)).cpu()

    return network


def _pixels(reference: NDArray[np.uint8]) -> Network:
    rows = extract(lambda batch: thumbnails(batch, PIXELS_SIDE), reference, "principal components")
    components = min(PIXELS_COMPONENTS, len(rows) - 1, rows.shape[1])
    # The result must not depend on the number of cores. Equal images have zero variance to divide by.
    with threadpool_limits(1), np.errstate(invalid="ignore"):
        pca = PCA(components, svd_solver="full").fit(rows.double().numpy())
    mean, axes = torch.from_numpy(pca.mean_), torch.from_numpy(pca.components_)

    def network(batch: NDArray[np.uint8]) -> Tensor:
        return ((thumbnails(batch, PIXELS_SIDE).double() - mean) @ axes.T).float()

    return network
