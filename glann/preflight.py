"""Looking at pictures and weights before the work begins, so that no run fails late for an early mistake."""

import numpy as np
import torch

from glann.evaluate.features import choose_kind, feature_network
from glann.glo.start import load_earlier
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


def check_weights(params: Params) -> None:
    """Load the weights and the earlier run that the settings name; what is to be downloaded is left out.

    Raises
    ------
    GlannError
        If a file is missing or holds something else.
    """
    loss, evaluate = params.glo.loss, params.evaluate
    if loss.kind == "perceptual" and loss.weights:
        vgg16(loss.weights, loss.levels)
    if params.glo.start_from:
        load_earlier(params.glo.start_from, params.glo.latent_dim)
    kind = choose_kind(evaluate.features, evaluate.weights)
    if kind != "pixels" and evaluate.weights:
        images = np.zeros((1, 1, 1, 3), np.uint8)
        feature_network(kind, evaluate.weights, images, Execution(torch.device("cpu"), torch.float32))
