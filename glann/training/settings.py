"""Settings that all trainings share."""

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from glann.runtime.settings import Section, Text

BETAS = 0.5, 0.999  # of Adam, as of DCGAN (arXiv:1511.06434)
Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class ParameterGroup(Section):
    """Settings for the parameters whose names match. If several groups match, the first one applies."""

    match: Text
    """shell pattern for parameter names, e.g. "blocks.0.*" """
    lr_multiplier: float = Field(1.0, ge=0, allow_inf_nan=False)
    """factor on the learning rate; 0 freezes the parameters"""
    gradient: Literal["none", "clip_norm", "clip_value", "normalize"] = "none"
    """what to do with the gradient before each step: none, clip_norm (shorten it to the limit at most),
    clip_value (limit each number), normalize (set its length to the limit)"""
    limit: float = Field(1.0, gt=0, allow_inf_nan=False)
    """the L2 norm for clip_norm and normalize, the absolute value for clip_value"""
