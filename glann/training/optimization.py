"""Adam with parameter groups, the learning-rate schedule, and the moving average of weights."""

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from glann.errors import GlannError
from glann.runtime.compute import Execution
from glann.training.settings import BETAS, ParameterGroup

WARM_UP = 100  # steps


def learning_rate_factor(schedule: str, step: int, steps: int) -> float:
    """Return the factor on learning rates at `step` of `steps`.

    It rises to 1 within `WARM_UP` steps, or a tenth of a shorter run. Adam's first steps are as long as later
    ones, although its moments are still unreliable. Without a warm-up, a decoder may end up drawing one
    texture for all latents. After it, the factor stays ("constant") or falls along a
    cosine to 0 (SGDR, arXiv:1608.03983, eq. 5).
    """
    rise = min(1.0, (step + 1) / max(1, min(WARM_UP, steps // 10)))
    return rise if schedule == "constant" else rise * (1 + math.cos(math.pi * step / steps)) / 2


def adam(
    module: nn.Module, lr: float, groups: Sequence[ParameterGroup], betas: tuple[float, float] = BETAS
) -> torch.optim.Adam:
    """Return Adam over the module's parameters; each is in the first group whose pattern matches its name.

    Raises
    ------
    GlannError
        If a group's pattern matches no parameter, or only those of earlier groups.
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
    on_gpu = next(module.parameters()).is_cuda
    return torch.optim.Adam(param_groups, lr=lr, betas=betas, fused=True, capturable=on_gpu)


def step(optimizer: torch.optim.Adam, lr: float | Tensor) -> None:
    """Transform gradients by group, step with `lr` times the group's multiplier, and clear the gradients."""
    for group in optimizer.param_groups:
        with_gradient = [p for p in group["params"] if p.grad is not None]
        if with_gradient:  # networks that are stepped in turn have none in each other's steps
            _transform_gradient(with_gradient, group["gradient"], group["limit"])
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


class MovingAverage(AveragedModel):
    """The exponential moving average of a module's parameters; buffers are copied.

    After t steps the decay is at most (1 + t) / (10 + t), so that even a short run forgets its first weights.
    torch's own `update_parameters` reads its step count from the GPU in every step.

    Parameters
    ----------
    module
        The module; a copy of it becomes the average.
    decay
        The decay after many steps, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float):
        super().__init__(module)
        self.decay = decay

    def share(self, steps: int) -> float:
        """Return the share of the module's parameters in the average, after `steps` earlier steps."""
        return 1 - min(self.decay, (1 + steps) / (10 + steps)) if steps else 1.0

    @torch.no_grad()
    def update(self, module: nn.Module, share: float | Tensor) -> None:
        """Move the average towards the module's parameters by a share, a number or float32 []."""
        averages: list[Tensor] = [*self.module.parameters()]
        parameters: list[Tensor] = [*module.parameters()]
        if isinstance(share, Tensor):
            torch._foreach_lerp_(averages, parameters, [share] * len(averages))
        else:
            torch._foreach_lerp_(averages, parameters, share)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)


@torch.no_grad()
def recompute_batch_norm(decoder: nn.Module, latents: Iterable[Tensor], execution: Execution) -> None:
    """Measure the batch-norm statistics again: those kept in training belong to other weights.

    Parameters
    ----------
    decoder
        Also the moving average of one. Without batch normalisation, nothing is done.
    latents
        Batches float [b, d] to measure them with, on the decoder's device.
    execution
        Precision.
    """
    with execution.autocast():
        update_bn(latents, decoder)
