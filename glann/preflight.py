"""Looking at pictures and weights before the work begins, so that no run fails late for an early mistake."""

from pathlib import Path

import numpy as np
import torch

from glann.errors import GlannError
from glann.evaluate.features import choose_kind, feature_network
from glann.glo.start import load_earlier
from glann.images.classes import needed
from glann.imle.fit import load_start
from glann.networks.vgg import vgg16
from glann.params import Params
from glann.prepare.dataset import check_enough
from glann.prepare.sources import SOURCES, find_images
from glann.runtime.compute import Execution


def check_pictures(params: Params) -> None:
    """Check that there are enough pictures; sources that need a download are left out.

    Raises
    ------
    GlannError
        As `prepare` does.
    """
    if params.prepare.source in SOURCES:
        check_enough(len(find_images(params.prepare, params.seed).items), params.prepare)


def check_classes(params: Params) -> None:
    """Check that there are classes, if the mapping is to be fitted to them.

    Raises
    ------
    GlannError
        If there are none.
    """
    if params.imle.conditional and params.prepare.source in SOURCES:
        source = find_images(params.prepare, params.seed)
        if source.class_of is None:
            needed(None, params.prepare.source)


def check_loss_weights(params: Params) -> None:
    """Load the weights of the loss, if the settings name a file.

    Raises
    ------
    GlannError
        If the file is missing or holds something else.
    """
    loss = params.glo.loss
    if loss.kind == "perceptual" and loss.weights:
        vgg16(loss.weights, loss.levels)


def check_start(params: Params) -> None:
    """Load the run from which GLO is to start, if the settings name one.

    Raises
    ------
    GlannError
        If a file is missing or does not fit.
    """
    if params.glo.start_from:
        _not_replaced("glo.start_from", Path(params.glo.start_from, "glo"), "glo")
        load_earlier(params.glo.start_from, params.glo.latent_dim)


def _not_replaced(key: str, folder: Path, stage: str) -> None:
    """Refuse to start from what the stage itself is going to replace: DVC removes that first."""
    if folder.resolve() == Path("data", stage).resolve():
        raise GlannError(f"{key}: data/{stage} is replaced by the run; copy it first, e.g. to ../earlier")


def check_mapping(params: Params) -> None:
    """Load the mapping from which IMLE is to start, if the settings name one.

    Raises
    ------
    GlannError
        If the file is missing or does not fit.
    """
    if params.imle.start_from:
        _not_replaced("imle.start_from", Path(params.imle.start_from).parent, "imle")
        load_start(params.imle, params.glo.latent_dim)


def check_evaluation_weights(params: Params) -> None:
    """Load the weights of the evaluation, if the settings name a file that it uses.

    Raises
    ------
    GlannError
        If the file is missing or holds something else.
    """
    weights = params.evaluate.weights
    kind = choose_kind(params.evaluate.features, weights)
    if kind != "pixels" and weights:
        images = np.zeros((1, 1, 1, 3), np.uint8)
        feature_network(kind, weights, images, Execution(torch.device("cpu"), torch.float32))
