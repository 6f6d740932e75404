"""What both training stages share: batches, schedule, parameter groups, averages, checkpoints, the guard."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from glann.config import ParameterGroup
from glann.errors import GlannError
from glann.storage import load_tensors, save_tensors

Tensors = tuple[Tensor, ...] | list[Tensor]

WARM_UP = 100  # steps


def batches(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Split row numbers into the fewest batches of at most `batch_size`, equal in size to one row.

    A short last batch would count as much as a full one. Batch normalisation needs two rows, so two is the
    least, whatever `batch_size` says.
    """
    count = min(-(-len(order) // batch_size), len(order) // 2)
    return order.tensor_split(max(count, 1))


def learning_rate_factor(schedule: str, step: int, steps: int) -> float:
    """Return the factor on learning rates at `step` of `steps`.

    It rises to 1 within `WARM_UP` steps (a tenth of a shorter run), since Adam's first steps are as long as
    any while its moments know nothing yet: without, a decoder may end up drawing one texture for all latents.
    Then it stays ("constant") or falls along a cosine to 0 (SGDR, arXiv:1608.03983, eq. 5).
    """
    rise = min(1.0, (step + 1) / max(1, min(WARM_UP, steps // 10)))
    return rise if schedule == "constant" else rise * (1 + math.cos(math.pi * step / steps)) / 2


def adam(module: nn.Module, lr: float, groups: Sequence[ParameterGroup]) -> torch.optim.Adam:
    """Return Adam over the module's parameters, each in the first group whose pattern matches its name.

    Raises
    ------
    GlannError
        If a group's pattern matches no parameter that is still free.
    """
    remaining = dict(module.named_parameters())
    param_groups: list[dict[str, Any]] = []
    for group in groups:
        matched = [name for name in remaining if fnmatchcase(name, group.match)]
        if not matched:
            names = ", ".join(remaining) or "nothing: earlier groups took all"
            raise GlannError(f'parameter_groups: "{group.match}" matches none of: {names}')
        param_groups.append(
            {"params": [remaining.pop(name) for name in matched], **group.model_dump(exclude={"match"})}
        )
    if remaining:
        rest = ParameterGroup(match="*")
        param_groups.append({"params": [*remaining.values()], **rest.model_dump(exclude={"match"})})
    return torch.optim.Adam(param_groups, lr=lr, betas=(0.5, 0.999), fused=True)


def step(optimizer: torch.optim.Adam, lr: float) -> None:
    """Transform gradients by group, step at `lr` times the group's multiplier, clear the gradients."""
    for group in optimizer.param_groups:
        _transform_gradient(group["params"], group["gradient"], group["limit"])
        group["lr"] = lr * group["lr_multiplier"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _transform_gradient(parameters: list[nn.Parameter], kind: str, limit: float) -> None:
    if kind == "clip_norm":
        nn.utils.clip_grad_norm_(parameters, limit)
    elif kind == "clip_value":
        nn.utils.clip_grad_value_(parameters, limit)
    elif kind == "normalize":
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, limit / norm.clamp_min(1e-12))


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of the parameters; buffers are copied, not averaged.

    After t steps the decay is at most (1 + t) / (10 + t), so that a short run forgets its first weights too.
    """

    @torch.no_grad()
    def average(averages: Tensors, parameters: Tensors, steps: Tensor | int) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, parameters, 1 - now)

    return AveragedModel(module, multi_avg_fn=average)


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
        code of this package and torch's version are added.
    minutes
        Time between two checkpoints; 0: after every epoch.
    """

    def __init__(self, folder: str | Path, stage: str, inputs: Any, minutes: float):
        modules = sorted(Path(__file__).parent.glob("*.py"))
        code = hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()
        everything = json.dumps([inputs, code, torch.__version__], sort_keys=True)
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
            self.path.replace(self.path.with_suffix(".damaged"))
            return None

    def due(self) -> bool:
        """Return whether it is time for the next checkpoint."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, tensors: dict[str, Tensor], progress: Any) -> None:
        """Replace the checkpoint."""
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


def check_state(tensors: dict[str, Tensor], where: str, checkpoints: Checkpoints | None) -> None:
    """Stop a run whose weights are NaN or infinite, as after a last step on a gradient that was."""
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        check_finite(math.nan, where, checkpoints)


def check_finite(loss: float, where: str, checkpoints: Checkpoints | None) -> None:
    """Stop a run whose loss is NaN or infinite.

    Raises
    ------
    GlannError
        Naming the place, the last good checkpoint and what to try.
    """
    if math.isfinite(loss):
        return
    kept = "no checkpoint was written yet"
    if checkpoints and checkpoints.path.is_file():
        kept = f"the last good checkpoint is {checkpoints.path}"
    raise GlannError(
        f"{where}: the loss is {loss}; {kept}; lower the learning rates, "
        "clip gradients (parameter_groups), or set compute.precision to float32"
    )
