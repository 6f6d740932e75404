"""Checkpoints of the training stages, and the state of networks and optimisers as plain tensors."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glann.errors import GlannError
from glann.processes import decided_by_first, rank, ranks
from glann.storage import load_tensors, save_tensors


class Checkpoints:
    """The checkpoint of one training run: a safetensors file that holds all of its state.

    Randomness needs no state (see `streams`), so tensors, the epoch and the loss history are everything.

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
        Time between two checkpoints; 0: after every epoch.
    """

    def __init__(self, folder: str | Path, stage: str, inputs: Any, minutes: float):
        modules = sorted(Path(__file__).parent.glob("*.py"))
        code = hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()
        everything = json.dumps([inputs, code, torch.__version__, ranks()], sort_keys=True)
        digest = hashlib.sha256(everything.encode()).hexdigest()[:16]
        self.path = Path(folder) / f"{stage}-{digest}.safetensors"
        self.seconds = 60 * minutes
        self.last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], Any] | None:
        """Return the tensors and progress last saved, or None where nothing usable is."""
        if not self.path.is_file():
            return None
        try:
            return load_tensors(self.path)
        except GlannError:
            if rank() == 0:
                self.path.replace(self.path.with_suffix(".damaged"))
            return None

    def due(self) -> bool:
        """Return whether it is time for the next checkpoint, the same on every rank."""
        return decided_by_first(time.monotonic() - self.last >= self.seconds)

    def save(self, tensors: dict[str, Tensor], progress: Any) -> None:
        """Replace the checkpoint, on rank 0."""
        if rank() == 0:
            save_tensors(self.path, tensors, progress)
        self.last = time.monotonic()

    def remove(self) -> None:
        """Delete the checkpoint: the run's result has been stored."""
        self.path.unlink(missing_ok=True)


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
