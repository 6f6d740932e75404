"""Writing and reading the checkpoint of a training run."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glann.errors import GlannError
from glann.runtime.code import digests_of_stage
from glann.runtime.console import say
from glann.runtime.files import STAGES
from glann.runtime.processes import from_first, rank, ranks
from glann.runtime.signals import Stopped, stop_requested
from glann.runtime.tensors import load_tensors, save_tensors

Check = Callable[[dict[str, Tensor], Any], None]
"""Called with tensors and position; raises ValueError if the run cannot continue from them."""

DECIDE_EVERY = 10  # steps after which several processes agree on whether a checkpoint is due


class Checkpoints:
    """The checkpoint of one training run: a safetensors file that holds all of its state.

    Randomness needs no state (see `glann.runtime.randomness`), so tensors and the position are
    everything. Rank 0 reads and writes for all.

    Parameters
    ----------
    folder
        Where checkpoints are stored.
    stage
        Name of the stage.
    inputs
        Everything that determines the result (params, seed, precision, a digest of the data), as json. The
        stage's code, torch's version and the number of processes are added.
    minutes
        Time between two checkpoints. 0: a checkpoint after every step.
    """

    def __init__(self, folder: str | Path, stage: str, inputs: Any, minutes: float):
        code = digests_of_stage(stage, ("inputs", *STAGES))
        everything = json.dumps([inputs, code, torch.__version__, ranks()], sort_keys=True)
        self.name = f"{stage}-{hashlib.sha256(everything.encode()).hexdigest()[:16]}"
        self.path = Path(folder) / f"{self.name}.safetensors"
        self.seconds = 60 * minutes
        self.last = time.monotonic()
        self.warned = False

    def load(self, check: Check = lambda _, __: None) -> tuple[dict[str, Tensor], Any] | None:
        """Return the tensors and position saved last, or None if there is no usable checkpoint.

        A file that is damaged, belongs to another run, or is refused by `check` is set aside with a message.

        Parameters
        ----------
        check
            Raises ValueError if the run cannot continue from the tensors and position.
        """
        found = self._read(check) if rank() == 0 else None
        if not from_first(found is not None):
            return None
        return found or self._read(check)

    def _read(self, check: Check) -> tuple[dict[str, Tensor], Any] | None:
        for unfinished in self.path.parent.glob(f".{self.name}-*{self.path.suffix}"):
            unfinished.unlink(missing_ok=True)  # left by a run that was killed while saving
        if not self.path.is_file():
            return None
        try:
            tensors, config = load_tensors(self.path)
            if not isinstance(config, dict) or config.get("run") != self.name:
                raise GlannError(f"{self.path}: belongs to another run")
            try:
                check(tensors, config.get("position"))
            except ValueError as error:
                raise GlannError(f"{self.path}: holds no state of this run ({error})") from None
        except GlannError as error:
            aside = self.path.with_suffix(".damaged")
            self.path.replace(aside)
            say(f"{error}; set aside as {aside.name}; the stage starts from the beginning")
            return None
        return tensors, config["position"]

    def due(self, step: int) -> bool:
        """Return whether to save after this step: it is time, or a signal came. The same on every rank."""
        if ranks() > 1 and step % DECIDE_EVERY:
            return False
        return from_first(stop_requested() or time.monotonic() - self.last >= self.seconds)

    def save(self, tensors: dict[str, Tensor], position: Any) -> None:
        """Replace the checkpoint. If it cannot be written, training continues and the last one stays.

        Parameters
        ----------
        tensors
            The state of the run.
        position
            Where the run is, as json.

        Raises
        ------
        Stopped
            If a signal asked the run to stop.
        """
        self.last = time.monotonic()
        failed = ""
        if rank() == 0:
            try:
                save_tensors(
                    self.path, tensors, {"run": self.name, "folder": str(Path.cwd()), "position": position}
                )
            except (GlannError, OSError) as error:
                failed = f"{error}"
        stopping = from_first(stop_requested())
        finished = isinstance(position, dict) and position.get("finished")
        if failed and not stopping and not finished and not self.warned:
            self.warned = True  # once is enough; after a finished run, writing the results would fail too
            say(f"{failed}; training continues without a checkpoint")
        if stopping:
            state = f"no checkpoint: {failed}" if failed else f"checkpoint in {self.path}"
            raise Stopped(f"stopped, {state}; run the same command to continue from there")

    def remove(self) -> None:
        """Delete the checkpoint."""
        self.path.unlink(missing_ok=True)
