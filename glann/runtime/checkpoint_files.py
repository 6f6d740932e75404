"""The checkpoints in a folder: listing them, and deleting those that are no longer needed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from glann.errors import GlannError
from glann.runtime.settings import Section
from glann.runtime.tensors import load_config

NAME = re.compile(r"\.?[a-z_]+-[0-9a-f]{16}(-[0-9a-f]{8})?\.(safetensors|damaged)")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Position(Section):
    """Where a training run is.

    Attributes
    ----------
    history
        Per finished epoch: its number, counted from 1, the mean loss, and more.
    step, rows, sum
        In this epoch: steps and rows done by all ranks, and the sum of the losses of these rows.
    epochs, steps
        Number of epochs in the run, and of steps in an epoch.
    finished
        Whether training is complete and only the results have to be written.
    """

    history: list[dict[str, int | Finite]]
    step: int = Field(ge=0)
    rows: int = Field(ge=0)
    sum: Finite
    epochs: int = Field(ge=1)
    steps: int = Field(ge=1)
    finished: bool

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if [entry.get("epoch") for entry in self.history] != [*range(1, len(self.history) + 1)]:
            raise ValueError("history: epochs are not in order")
        if not all("loss" in entry for entry in self.history):
            raise ValueError("history: an epoch has no loss")
        if self.step > self.steps or (self.step == 0) != (self.rows == 0):
            raise ValueError(f"step: {self.step} of {self.steps} with {self.rows} rows")
        if len(self.history) > self.epochs or self.finished != (len(self.history) == self.epochs):
            raise ValueError(
                f"history: {len(self.history)} of {self.epochs} epochs, finished: {self.finished}"
            )
        return self

    @property
    def steps_done(self) -> int:
        """Steps done in all epochs."""
        return len(self.history) * self.steps + self.step


@dataclass(frozen=True)
class Stored:
    """A checkpoint file.

    Attributes
    ----------
    path
        The file.
    position
        Where the run was; None if the file cannot be read.
    folder
        The working directory of the run.
    """

    path: Path
    position: dict[str, Any] | None
    folder: str | None = None

    @property
    def state(self) -> str:
        """How far the run had come, in words."""
        at = self.position
        if at is None:
            return "cannot be read"
        if at["finished"]:
            return "finished"
        return f"epoch {len(at['history']) + 1} of {at['epochs']}, step {at['step']} of {at['steps']}"


def stored(folder: str | Path) -> Iterator[Stored]:
    """Yield all checkpoints in a folder, including damaged and unfinished ones, and no other files."""
    for path in sorted(Path(folder).glob("*")):
        if not (NAME.fullmatch(path.name) and path.is_file()):
            continue
        try:
            config = load_config(path)
            position = Position.model_validate(config["position"]).model_dump()
            yield Stored(path, position, config.get("folder"))
        except (GlannError, TypeError, KeyError, ValueError):
            yield Stored(path, None)


def remove_finished(folder: str | Path, stage: str) -> None:
    """Delete a stage's finished checkpoints. Call it when the next stage begins: the results are safe then.

    Checkpoints of runs in other folders, such as parallel experiments, stay.
    """
    for checkpoint in stored(folder):
        mine = checkpoint.path.name.startswith(f"{stage}-") and checkpoint.folder == str(Path.cwd())
        if mine and checkpoint.position and checkpoint.position["finished"]:
            checkpoint.path.unlink(missing_ok=True)
