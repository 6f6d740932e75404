"""Settings that all trainings share."""

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from glann.runtime.settings import Section, Text

Rate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class ParameterGroup(Section):
    """Settings for the parameters whose name matches; the first matching group counts."""

    match: Text
    """shell pattern on the parameter's name, e.g. "blocks.0.*" """
    lr_multiplier: float = Field(1.0, ge=0, allow_inf_nan=False)
    """factor on the learning rate; 0 freezes"""
    gradient: Literal["none", "clip_norm", "clip_value", "normalize"] = "none"
    """what happens to the group's gradient before each step; normalize sets its L2 norm to the limit"""
    limit: float = Field(1.0, gt=0, allow_inf_nan=False)
    """L2 norm for clip_norm and normalize, absolute value for clip_value"""
