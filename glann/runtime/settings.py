"""What the sections of params.yaml have in common, and the `compute` section."""

import os
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

LARGEST = 10**9  # bound of integers without a tighter one: their products still fit into 64 bits
IN_FILE = "in a file"
"""context in which settings are checked that come from a file, not from Python"""
MOST_DIMENSIONS = 2**20  # bound of latent and noise sizes in files
MOST_CLASSES = 10_000  # of a conditional mapping


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul", "should have no NUL character")
    return text


def _expanded(path: str) -> str:
    """Replace ~ and variables, as a shell would; a variable that is not set stays as it is."""
    return os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 (pathlib expands no variables)


Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
PathText = Annotated[Text, AfterValidator(_expanded)]


class Section(BaseModel):
    """A section of params.yaml: keys are checked strictly, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    printed_by: ClassVar[str] = "glann params"
    """the command that prints all keys of the file"""


class Compute(Section):
    """How a run is executed. Results depend on these keys by rounding at most, so DVC does not track them."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:(0|[1-9][0-9]?))?)$")
    """auto (a GPU if there is one), cpu, cuda or cuda:N"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto (bfloat16 if the hardware supports it, float32 otherwise), float32 or bfloat16"""
    threads: int = Field(2, ge=1, le=1024)
    """CPU threads per process; raise it if there are more cores (not automatic, since it affects rounding)"""
    processes: int = Field(1, ge=1, le=1024)
    """processes for training on this machine, one per GPU; torchrun sets its own number"""
    cuda_graphs: bool = True
    """record training steps on a GPU, and replay them, which is faster; only with one process"""
    checkpoint_minutes: float = Field(10, ge=0, allow_inf_nan=False)
    """minutes between checkpoints in training; 0: a checkpoint after every step"""
    watch_minutes: float = Field(2, ge=0, allow_inf_nan=False)
    """minutes between pages with pictures and losses in watch/, for a browser; 0: none"""
    tensorboard: PathText | None = None
    """folder for losses and pictures for TensorBoard, which must be installed; null: none"""

    @model_validator(mode="after")
    def _a_gpu_each(self) -> Self:
        if self.processes > 1 and self.device.startswith("cuda:"):
            raise ValueError(
                f"device: {self.device} is one GPU; for several processes set it to cuda or auto"
            )
        return self
