"""What both training stages share: schedule, parameter groups, averages, the course of a run."""

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, NoReturn, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from glann.checkpoints import Checkpoints, Parts, Progress, check_state, check_tensors, restore_state
from glann.config import ParameterGroup, one_line
from glann.errors import GlannError
from glann.processes import decided_by_first, rank, total
from glann.shards import Shard
from glann.stopping import stop_requested

Batch = TypeVar("Batch")
Tensors = tuple[Tensor, ...] | list[Tensor]

WARM_UP = 100  # steps
READ_EVERY = 20  # steps between two looks at a loss that is on a GPU
DIVERGED, PATIENCE = 10, 3  # a loss so many times its best, for so many epochs, will not come back


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


class TrainingRun:
    """Where a training run is: its losses, guarded, its position, its checkpoints.

    Losses are summed where they are computed. Reading a number from a GPU waits for all that is queued there,
    so it is done every few steps only.

    Parameters
    ----------
    stage
        Name of the stage, for messages.
    epochs
        Passes over the data.
    shard
        What a pass is made of.
    checkpoints
        Where to resume from and to save to; None: neither.
    remedy
        What people are told to do about a loss that goes wrong.

    Attributes
    ----------
    history
        Per finished epoch: its number from 1 on and the mean loss.
    step
        Steps done of this epoch.
    note
        The loss so far, for the progress bar.
    """

    def __init__(self, stage: str, epochs: int, shard: Shard, checkpoints: Checkpoints | None, remedy: str):
        self.stage, self.epochs, self.checkpoints, self.remedy = stage, epochs, checkpoints, remedy
        self.n, self.steps, self.batch_size = shard.n, shard.steps, shard.strata
        self.history: list[dict[str, float]] = []
        self.note = ""
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.step = self.rows = 0
        self.sum = torch.zeros((), dtype=torch.float64)

    @property
    def steps_done(self) -> int:
        """Steps of all epochs."""
        return len(self.history) * self.steps + self.step

    def resume(self, parts: Parts, more: dict[str, Tensor]) -> dict[str, Tensor]:
        """Go to where the checkpoint was made.

        Parameters
        ----------
        parts
            Networks, averages and optimisers; their state is put back.
        more
            What else a checkpoint must have, by name: tensors of these shapes and types.

        Returns
        -------
        dict
            The tensors of the checkpoint; none where there is none.
        """

        def check(tensors: dict[str, Tensor], progress: Any) -> None:
            at = self._checked(progress)
            check_state(tensors, at.steps_done, **parts)
            check_tensors(tensors, more)

        saved = self.checkpoints.load(check) if self.checkpoints else None
        if saved is None:
            return {}
        tensors, at = saved
        restore_state(tensors, **parts)
        self.history, self.step = at["history"], at["step"]
        if rank() == 0:  # what was saved is the sum of all ranks
            self.rows = at["rows"]
            self.sum.fill_(at["sum"])
        return tensors

    def _checked(self, progress: Any) -> Progress:
        try:
            at = Progress.model_validate(progress)
        except ValidationError as error:
            raise ValueError(one_line(error)) from None
        fewest, most = at.step * (self.batch_size - 1), min(self.n, at.step * self.batch_size)
        if (at.epochs, at.steps) != (self.epochs, self.steps) or not fewest <= at.rows <= most:
            raise ValueError(f"step {at.step} of {at.steps}, {at.epochs} epochs, {at.rows} rows")
        return at

    def epochs_left(self) -> Iterator[int]:
        """Yield the numbers, from 0 on, of the epochs that are not finished."""
        while len(self.history) < self.epochs:
            yield len(self.history)

    def batches_left(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Leave out the batches of this epoch that are done."""
        return islice(batches, self.step, None)

    def add(self, loss: Tensor, rows: int) -> None:
        """Add the mean loss of a batch of so many rows.

        Raises
        ------
        GlannError
            If the loss is or was NaN or infinite.
        """
        self.sum = self.sum.to(loss.device) + loss.detach() * rows
        self.rows += rows
        self.step += 1
        if not loss.is_cuda or self.step % READ_EVERY == 0:
            self._read()

    def end_epoch(self, **more: float) -> None:
        """Put the mean loss over all rows of all ranks, six digits, and `more` into the history.

        Raises
        ------
        GlannError
            If the run diverges.
        """
        self._read()
        loss = float(f"{total(self.sum).item() / self.n:.6g}")
        self.history.append({"epoch": len(self.history) + 1, "loss": loss, **more})
        self._begin_epoch()
        if len(self.history) > PATIENCE and all(
            self._far_off(entry["loss"]) for entry in self.history[-PATIENCE:]
        ):
            best = min(entry["loss"] for entry in self.history)
            self.stop(
                f"epoch {len(self.history)}",
                f"has been more than {DIVERGED} times its best ({best:g}) for {PATIENCE} epochs: {loss:g}",
            )

    def _far_off(self, loss: float) -> bool:
        """Say whether a loss is bad beyond chance: a multiple of the best, and worse than the first."""
        losses = [entry["loss"] for entry in self.history]
        return bool(losses) and loss > max(DIVERGED * min(losses), losses[0])

    def checkpoint_due(self) -> bool:
        """Return whether to call `save` now, the same on every rank."""
        return self.checkpoints is not None and self.checkpoints.due(self.steps_done)

    def save(self, network: nn.Module, tensors: dict[str, Tensor], finished: bool = False) -> None:
        """Save a checkpoint: `tensors` and where the run is, unless it is diverging.

        Raises
        ------
        GlannError
            If the network's weights are NaN or infinite, as after a step on a gradient that was.
        Stopped
            If a signal asked for it.
        """
        if not torch.stack([p.isfinite().all() for p in network.parameters()]).all():
            self._read()
            self.stop(self._here, f"is {math.nan}")
        if self.checkpoints is None:
            return
        loss, rows = total(torch.stack([self.sum, self.sum.new_tensor(self.rows)])).tolist()
        if rows and self._far_off(loss / rows) and not decided_by_first(stop_requested()):
            return
        if not math.isfinite(loss):
            self.stop(self._here, f"is {loss}")
        at = Progress(
            history=self.history,
            step=self.step,
            rows=int(rows),
            sum=loss,
            epochs=self.epochs,
            steps=self.steps,
            finished=finished,
        )
        self.checkpoints.save(tensors, at.model_dump())

    @property
    def _here(self) -> str:
        return f"epoch {len(self.history) + bool(self.step)}, step {self.step or self.steps}"

    def _read(self) -> None:
        value = self.sum.item()
        if not math.isfinite(value):
            self.stop(self._here, f"is {value}")
        self.note = f"loss {value / max(self.rows, 1):.4f}"

    def stop(self, where: str, what: str) -> NoReturn:
        """Raise what people are told of a loss that went wrong."""
        kept = "no checkpoint was written yet"
        if self.checkpoints and self.checkpoints.path.is_file():
            kept = f"the last good checkpoint is {self.checkpoints.path}"
        raise GlannError(f"{self.stage}: {where}: the loss {what}; {kept}; {self.remedy}")
