"""The state of a training run as plain tensors, named ``part.key``."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel


@runtime_checkable
class Rows(Protocol):
    """State with a row per training example; each process has its own rows."""

    def expected(self) -> dict[str, Tensor]:
        """Return tensors of the names, shapes and types of `state`, for all rows; they may take no memory."""

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name; on rank 0, with the rows of all ranks."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take this process's rows from what `state` returned on rank 0."""


Parts = Mapping[str, nn.Module | Optimizer | Rows]


def flatten_state(parts: Parts) -> dict[str, Tensor]:
    """Return the state of all parts; on rank 0, with the rows of all ranks."""
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensors |= {f"{name}.{key}": value for key, value in _state(part).items()}
    return tensors


def _state(part: nn.Module | Optimizer | Rows) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return part.state_dict()
    if isinstance(part, Optimizer):
        moments = part.state_dict()["state"]
        return {f"{i}.{key}": value for i, own in moments.items() for key, value in own.items()}
    return part.state()


def restore_state(tensors: dict[str, Tensor], parts: Parts) -> None:
    """Put back what `flatten_state` returned."""
    for name, part in parts.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if isinstance(part, nn.Module):
            part.load_state_dict(own)
        elif isinstance(part, Optimizer):
            _restore_moments(part, own)
        else:
            part.restore(own)


def _restore_moments(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, moment = int(key.split(".")[0]), key.split(".")[1]
        # The fused kernel walks memory: moments must be laid out as their parameters are.
        like = parameters[index] if value.dim() else value
        state.setdefault(index, {})[moment] = torch.empty_like(like, requires_grad=False).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_state(tensors: dict[str, Tensor], steps: int, parts: Parts) -> None:
    """Raise ValueError unless the tensors are what `flatten_state` returns after `steps` steps."""
    for name, part in parts.items():
        counts: list[str] = []  # tensors that count steps
        if isinstance(part, nn.Module):
            expected = part.state_dict()
            counts = ["n_averaged"] * isinstance(part, AveragedModel)
        elif isinstance(part, Optimizer):
            parameters = _parameters(part)
            moments = ("exp_avg", "exp_avg_sq")
            expected = {f"{i}.{key}": p for i, p in enumerate(parameters) for key in moments}
            counts = [f"{i}.step" for i in range(len(parameters))]
            expected |= {key: torch.zeros(()) for key in counts}
        else:
            expected = part.expected()
        _check_tensors(tensors, {f"{name}.{key}": value for key, value in expected.items()})
        # A network may be stepped several times in a step of the training.
        found = [int(tensors[f"{name}.{key}"]) for key in counts]
        if any(count != steps * max(1, count // max(1, steps)) for count in found):
            raise ValueError(f"{name}: not of step {steps}")


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise ValueError unless tensors of these names exist, with these shapes and types, and are finite.

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
