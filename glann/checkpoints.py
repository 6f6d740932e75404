"""Checkpoints of the training stages, and the state of networks and optimisers as plain tensors."""

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glann.errors import GlannError
from glann.processes import decided_by_first, rank, ranks
from glann.stopping import Stopped, stop_requested
from glann.storage import load_config, load_tensors, save_tensors

Parts = dict[str, nn.Module | torch.optim.Optimizer]

DECIDE_EVERY = 10  # steps of several processes between two agreements on whether a checkpoint is due


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
        modules = sorted(Path(__file__).parent.glob("*.py"))
        code = hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()
        everything = json.dumps([inputs, code, torch.__version__, ranks()], sort_keys=True)
        self.run = f"{stage}-{hashlib.sha256(everything.encode()).hexdigest()[:16]}"
        self.path = Path(folder) / f"{self.run}.safetensors"
        self.seconds = 60 * minutes
        self.last = time.monotonic()
        self.warned = False

    def load(self) -> tuple[dict[str, Tensor], Any] | None:
        """Return the tensors and progress last saved, or None where nothing usable is.

        A file that is damaged or of another run is set aside, with one line.
        """
        found = self._read() if rank() == 0 else None
        if not decided_by_first(found is not None):
            return None
        return found or self._read()

    def _read(self) -> tuple[dict[str, Tensor], Any] | None:
        if not self.path.is_file():
            return None
        try:
            tensors, config = load_tensors(self.path)
            if not isinstance(config, dict) or config.get("run") != self.run:
                raise GlannError(f"{self.path}: belongs to another run")
        except GlannError as error:
            aside = self.path.with_suffix(".damaged")
            self.path.replace(aside)
            _say(f"{error}; set aside as {aside.name}, the stage begins anew")
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
                save_tensors(self.path, tensors, {"run": self.run, "progress": progress})
            except (GlannError, OSError) as error:
                failed = f"{error}"
        stopping = decided_by_first(stop_requested())
        finished = isinstance(progress, dict) and progress.get("finished")
        if failed and not stopping and not finished and not self.warned:
            self.warned = True  # once is enough; behind a finished run its results are written, or fail to be
            _say(f"{failed}; training goes on without a checkpoint")
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
    """

    path: Path
    progress: dict[str, Any] | None

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
    """Yield all checkpoints in a folder, also those set aside."""
    for path in sorted([*Path(folder).glob("*.safetensors"), *Path(folder).glob("*.damaged")]):
        try:
            progress = load_config(path)["progress"]
            known = {"history", "step", "epochs", "steps", "finished"} <= progress.keys()
        except (GlannError, TypeError, KeyError, AttributeError):
            known = False
        yield Stored(path, progress if known else None)


def remove_finished(folder: str | Path, stage: str) -> None:
    """Delete a stage's checkpoints of finished runs: the next stage has begun, so their results are safe."""
    for checkpoint in stored(folder):
        if checkpoint.path.name.startswith(f"{stage}-") and (checkpoint.progress or {}).get("finished"):
            checkpoint.path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print("glann: " + " ".join(text.split()), file=sys.stderr, flush=True)


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
