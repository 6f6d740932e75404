"""The `evaluate` section of params.yaml."""

from typing import Literal

from pydantic import (
    Field,
)

from glann.runtime.settings import LARGEST, Section, Text

LESS_MEMORY = "lower evaluate.count, or prepare.holdout"
"""what to advise if memory runs out"""


class Evaluate(Section):
    """How the model is measured."""

    features: Literal["auto", "inception", "vgg", "pixels"] = "auto"
    """inception (FID's network), vgg, pixels (PCA); auto: inception if its weights are here, else pixels"""
    weights: Text | None = None
    """weights of inception (torch-fidelity's .pth) or vgg (as glo.loss.weights); null: downloaded"""
    count: int = Field(5000, ge=2, le=LARGEST)
    """images per row of the table, at most; each row is compared with the hold-out images"""
    priors: list[Literal["gaussian", "mixture", "flow", "iresnet"]] = Field(["gaussian", "mixture"])
    """other models of the latents to compare with; flow needs the package zuko, iresnet normflows"""
    mixture_components: int = Field(50, ge=1, le=LARGEST)
    """components of the Gaussian mixture"""
