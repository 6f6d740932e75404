"""The `evaluate` section of params.yaml."""

from typing import Literal

from pydantic import (
    Field,
)

from glann.runtime.settings import LARGEST, PathText, Section

LESS_MEMORY = "lower evaluate.count, or prepare.holdout"
"""what to advise if memory runs out"""


class Evaluate(Section):
    """How the model is measured."""

    features: Literal["auto", "inception", "vgg", "pixels"] = "auto"
    """inception (as for FID), vgg or pixels (PCA); auto: inception if weights names its file or torch's cache
    has it, otherwise pixels; name one to compare metrics between machines"""
    weights: PathText | None = None
    """file of weights for inception (torch-fidelity's .pth) or vgg (as glo.loss.weights); null: download,
    unless features is auto"""
    count: int = Field(5000, ge=2, le=LARGEST)
    """largest number of images per row of the table; each row is compared with the hold-out images"""
    priors: list[Literal["gaussian", "mixture", "flow", "iresnet", "flow_matching"]] = Field(
        ["gaussian", "mixture"]
    )
    """other models of the latents to compare with: gaussian, mixture, flow (needs the package zuko), iresnet
    (needs normflows) and flow_matching"""
    mixture_components: int = Field(50, ge=1, le=LARGEST)
    """components of the Gaussian mixture"""
