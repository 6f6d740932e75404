"""Checkpoints of the training stages, and the state of networks and optimisers as plain tensors."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from glann.code import AT_START
from glann.config import Section
from glann.console import say
from glann.errors import GlannError
from glann.processes import decided_by_first, rank, ranks
from glann.stopping import Stopped, stop_requested
from glann.storage import load_config, load_tensors, save_tensors

Parts = dict[str, nn.Module | torch.optim.Optimizer]

NAME = re.compile(r"\.?[a-z_]+-[0-9a-f]{16}(-[0-9a-f]{8})?\.(safetensors|damaged)")
Finite = Annotated[float, Field(allow_inf_nan=False)]
Check = Callable[[dict[str, Tensor], Any], None]

DECIDE_EVERY = 10  # steps of several processes between two agreements on whether a checkpoint is due


class Progress(Section):
    """Where a training run is.

    Attributes
    ----------
    history
        Per finished epoch: its number from 1 on, the mean loss, and more.
    step, rows, sum
        Of this epoch: steps and rows done, by all ranks, and the sum of the rows' losses.
    epochs, steps
        Of the whole run, and of an epoch.
    finished
        Whether nothing is left but to write the results.
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
        """Steps of all epochs."""
        return len(self.history) * self.steps + self.step


class Checkpoints:
    """The checkpoint of one training run: a safetensors file that holds all of its state.

    Randomness needs no state (see `streams`), so tensors and the progress are everything. Rank 0 reads and
    writes for all.

    Parameters
    ----------
    folder
        Where checkpoints live.
    stage
        Name of the stage.
    inputs
        Whatever decides the result: params, seed, precision, a digest of the data; json must hold it. The
        code of this package, torch's version and the number of processes are added.
    minutes
        Time between two checkpoints; 0: after every step.
    """

    def __init__(self, folder: str | Path, stage: str, inputs: Any, minutes: float):
        code = [*AT_START.values()]
        everything = json.dumps([inputs, code, torch.__version__, ranks()], sort_keys=True)
        self.run = f"{stage}-{hashlib.sha256(everything.encode()).hexdigest()[:16]}"
        self.path = Path(folder) / f"{self.run}.safetensors"
        self.seconds = 60 * minutes
        self.last = time.monotonic()
        self.warned = False

    def load(self, check: Check = lambda tensors, progress: None) -> tuple[dict[str, Tensor], Any] | None:
        """Return the tensors and progress last saved, or None where nothing usable is.

        A file that is damaged, of another run or refused by `check` is set aside, with one line.

        Parameters
        ----------
        check
            Called with tensors and progress; raises ValueError if the run could not go on from them.
        """
        found = self._read(check) if rank() == 0 else None
        if not decided_by_first(found is not None):
            return None
        return found or self._read(check)

    def _read(self, check: Check) -> tuple[dict[str, Tensor], Any] | None:
        for unfinished in self.path.parent.glob(f".{self.run}-*{self.path.suffix}"):
            unfinished.unlink(missing_ok=True)  # left by a run that was killed while it saved
        if not self.path.is_file():
            return None
        try:
            tensors, config = load_tensors(self.path)
            if not isinstance(config, dict) or config.get("run") != self.run:
                raise GlannError(f"{self.path}: belongs to another run")
            try:
                check(tensors, config.get("progress"))
            except ValueError as error:
                raise GlannError(f"{self.path}: holds no state of this run ({error})") from None
        except GlannError as error:
            aside = self.path.with_suffix(".damaged")
            self.path.replace(aside)
            say(f"{error}; set aside as {aside.name}, the stage starts from the beginning")
            return None
        return tensors, config["progress"]

    def due(self, step: int) -> bool:
        """Return whether to save after so many steps: time has come, or a signal. The same on every rank."""
        if ranks() > 1 and step % DECIDE_EVERY:
            return False
        return decided_by_first(stop_requested() or time.monotonic() - self.last >= self.seconds)

    def save(self, tensors: dict[str, Tensor], progress: Any) -> None:
        """Replace the checkpoint. Where there is no room, training goes on without, and the last one stays.

        Parameters
        ----------
        tensors
            The state of the run.
        progress
            Where the run is, for `load` and `stored`; anything json holds.

        Raises
        ------
        Stopped
            If this was the last because a signal came.
        """
        self.last = time.monotonic()
        failed = ""
        if rank() == 0:
            try:
                save_tensors(
                    self.path, tensors, {"run": self.run, "folder": str(Path.cwd()), "progress": progress}
                )
            except (GlannError, OSError) as error:
                failed = f"{error}"
        stopping = decided_by_first(stop_requested())
        finished = isinstance(progress, dict) and progress.get("finished")
        if failed and not stopping and not finished and not self.warned:
            self.warned = True  # once is enough; behind a finished run its results are written, or fail to be
            say(f"{failed}; training goes on without a checkpoint")
        if stopping:
            state = f"no checkpoint: {failed}" if failed else f"checkpoint in {self.path}"
            raise Stopped(f"stopped, {state}; the same command goes on from there")

    def remove(self) -> None:
        """Delete the checkpoint."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Stored:
    """A file among checkpoints.

    Attributes
    ----------
    path
        The file.
    progress
        What the run said of itself; None where the file cannot be read.
    folder
        The current folder of the run.
    """

    path: Path
    progress: dict[str, Any] | None
    folder: str | None = None

    @property
    def state(self) -> str:
        """How far the run was, in words."""
        at = self.progress
        if at is None:
            return "cannot be read"
        if at["finished"]:
            return "finished"
        return f"epoch {len(at['history']) + 1} of {at['epochs']}, step {at['step']} of {at['steps']}"


def stored(folder: str | Path) -> Iterator[Stored]:
    """Yield all checkpoints in a folder, those set aside or half-written too, and no other files."""
    for path in sorted(Path(folder).glob("*")):
        if not (NAME.fullmatch(path.name) and path.is_file()):
            continue
        try:
            config = load_config(path)
            progress = Progress.model_validate(config["progress"]).model_dump()
            yield Stored(path, progress, config.get("folder"))
        except (GlannError, TypeError, KeyError, ValueError):
            yield Stored(path, None)


def remove_finished(folder: str | Path, stage: str) -> None:
    """Delete a stage's checkpoints of finished runs: the next stage has begun, so their results are safe.

    Those of runs in other folders, such as an experiment beside this one, stay.
    """
    for checkpoint in stored(folder):
        mine = checkpoint.path.name.startswith(f"{stage}-") and checkpoint.folder == str(Path.cwd())
        if mine and checkpoint.progress and checkpoint.progress["finished"]:
            checkpoint.path.unlink(missing_ok=True)


def flatten_state(**parts: nn.Module | torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of modules and optimisers as tensors named ``part.key``."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        else:
            for index, moments in part.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": value for key, value in moments.items()}
    return tensors


def check_state(tensors: dict[str, Tensor], steps: int, **parts: nn.Module | torch.optim.Optimizer) -> None:
    """Raise ValueError unless the tensors are what `flatten_state` returns after so many steps."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            expected = {f"{name}.{key}": value for key, value in part.state_dict().items()}
        else:
            parameters = [p for group in part.param_groups for p in group["params"]]
            moments = ("exp_avg", "exp_avg_sq")
            expected = {f"{name}.{i}.{key}": p for i, p in enumerate(parameters) for key in moments}
            counts = {f"{name}.{i}.step": torch.zeros(()) for i in range(len(parameters))}
            check_tensors(tensors, expected | counts)
            if any(tensors[key] != steps for key in counts):
                raise ValueError(f"{name}: not of step {steps}")
        check_tensors(tensors, expected)
        if isinstance(part, AveragedModel) and tensors[f"{name}.n_averaged"] != steps:
            raise ValueError(f"{name}: not of step {steps}")


def check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ValueError unless tensors of these names are there, of these shapes and types, and finite.

    Second moments and variances must not be negative either.
    """
    for name, like in expected.items():
        value = tensors.get(name)
        if value is None or value.shape != like.shape or value.dtype != like.dtype:
            raise ValueError(f"{name} is missing, or is not {like.dtype} {list(like.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name} is not finite")
        if name.endswith(("exp_avg_sq", "running_var", "table.square")) and (value < 0).any():
            raise ValueError(f"{name} is negative")


def restore_state(tensors: dict[str, Tensor], **parts: nn.Module | torch.optim.Optimizer) -> None:
    """Put back what `flatten_state` returned."""
    for name, part in parts.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if isinstance(part, nn.Module):
            part.load_state_dict(own)
        else:
            parameters = [p for group in part.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in own.items():
                index, moment = int(key.split(".")[0]), key.split(".")[1]
                # The fused kernel walks memory: moments must lie in it as their parameters do.
                like = parameters[index] if value.dim() else value
                state.setdefault(index, {})[moment] = torch.empty_like(like, requires_grad=False).copy_(value)
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
