"""What both training stages share: schedule, parameter groups, averages, the guarded loss."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from glann.checkpoints import Checkpoints
from glann.config import ParameterGroup
from glann.errors import GlannError
from glann.processes import total

Tensors = tuple[Tensor, ...] | list[Tensor]

WARM_UP = 100  # steps
READ_EVERY = 20  # steps between two looks at a loss that is on a GPU


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


class EpochLoss:
    """The loss of an epoch: summed where it is computed, and guarded.

    Reading a number from a GPU waits for all that is queued there, so it is done every few steps only.

    Parameters
    ----------
    where
        The stage and epoch, for messages.
    checkpoints
        Whose last good one a message names.
    """

    def __init__(self, where: str, checkpoints: Checkpoints | None):
        self.where, self.checkpoints = where, checkpoints
        self.sum = torch.zeros((), dtype=torch.float64)
        self.rows = self.steps = 0
        self.note = ""  # for the progress bar

    def add(self, loss: Tensor, rows: int) -> None:
        """Add the mean loss of a batch of so many rows.

        Raises
        ------
        GlannError
            If the loss is or was NaN or infinite.
        """
        self.sum = self.sum.to(loss.device) + loss.detach() * rows
        self.rows += rows
        self.steps += 1
        if not loss.is_cuda or self.steps % READ_EVERY == 0:
            self._read()

    def finish(self, n: int) -> float:
        """Return the mean over all n rows of all ranks, six digits."""
        self._read()
        return float(f"{total(self.sum).item() / n:.6g}")

    def _read(self) -> None:
        value = self.sum.item()
        check_finite(value, f"{self.where}, step {self.steps}", self.checkpoints)
        self.note = f"loss {value / self.rows:.4f}"


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


def check_weights(network: nn.Module, where: str, checkpoints: Checkpoints | None) -> None:
    """Stop a run whose weights are NaN or infinite, as after a last step on a gradient that was."""
    if not torch.stack([p.isfinite().all() for p in network.parameters()]).all():
        check_finite(math.nan, where, checkpoints)
