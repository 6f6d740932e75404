"""The course of a training run: everything around the algorithm, behind one call per step."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from glann.errors import DivergedError
from glann.runtime.checkpoint_files import Position
from glann.runtime.console import say
from glann.runtime.memory import memory_in_use
from glann.runtime.processes import from_first, rank, total
from glann.runtime.progress import progress
from glann.runtime.signals import stop_requested
from glann.runtime.validation import one_line
from glann.training.checkpoints import Checkpoints
from glann.training.optimization import learning_rate_factor
from glann.training.shards import Shard
from glann.training.state import Parts, check_state, flatten_state, restore_state

READ_EVERY = 20  # steps between two reads of a loss from a GPU
DIVERGED, PATIENCE = 10, 3  # a loss 10 times its best for 3 epochs will not recover


@dataclass(frozen=True)
class Batch:
    """A batch and its place in the training.

    Attributes
    ----------
    rows, weight
        This process's rows, and the factor on their mean loss, see `Shard.batches`.
    step
        Number of the step, counted from 0 over all epochs.
    done
        Fraction of all steps that is done before it.
    rate
        Factor on the learning rates.
    """

    rows: Tensor
    weight: float
    step: int
    done: float
    rate: float


class Course(AbstractContextManager["Course"]):
    """Where a training run is, its losses, its progress bar and its checkpoints.

    A training reads as its paper does, with one call per step for everything else::

        with Course("glo", "images", parts, shard, epochs, schedule, checkpoints, remedy) as course:
            for epoch in course.epochs():
                for batch in course.batches(seed):
                    ...  # forward, backward, steps at lr * batch.rate
                    course.step(loss, len(batch.rows))
                course.end_epoch()

    On entering, the run resumes from its checkpoint if there is one. When all epochs are done, the last
    checkpoint is saved.

    Parameters
    ----------
    stage
        Name of the stage.
    unit
        What the training examples are, for the progress bar.
    parts
        Everything that changes in training, by name: networks, averages, optimisers, and `Rows`.
    shard
        This process's share of every batch.
    epochs
        Passes over the examples.
    schedule
        Schedule of the learning rate, see `learning_rate_factor`.
    checkpoints
        Where to resume from and save to. None: neither.
    remedy
        What to advise if the loss goes wrong.
    pace
        Called once, with the share of the steps that a checkpoint has done: returns which share of the time
        has passed when a share of the steps is done. Default: steps take equally long.
    cycle
        Examples after which everything that recurs, such as a search, has happened once, so that the time
        to come can be told.
    falls
        Whether the loss should fall. If two networks work against each other, it need not: then only a loss
        that is not finite stops the run.

    Attributes
    ----------
    history
        Per finished epoch: its number, counted from 1, and the mean loss.
    """

    def __init__(
        self,
        stage: str,
        unit: str,
        parts: Parts,
        shard: Shard,
        epochs: int,
        schedule: str,
        checkpoints: Checkpoints | None,
        remedy: str,
        pace: Callable[[float], Callable[[float], float]] = lambda done: lambda share: share,
        cycle: int = 0,
        falls: bool = True,
    ):
        self.stage, self.unit, self.parts, self.shard = stage, unit, parts, shard
        self.epoch_count, self.schedule = epochs, schedule
        self.checkpoints, self.remedy, self.pace, self.cycle = checkpoints, remedy, pace, cycle
        self.falls = falls
        self.history: list[dict[str, float]] = []
        self._note = ""
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._step = self._rows = 0  # of this epoch
        # Summed where losses are computed: reading a number from a GPU waits for all its queued work.
        self._sum = torch.zeros((), dtype=torch.float64)

    def __enter__(self) -> Self:
        self._resume()
        self._bar = progress(
            self.stage,
            self.epoch_count * self.shard.n,
            self.unit,
            self._seen,
            self.pace(self.done),
            (lambda: f"it uses {memory_in_use()}") if rank() == 0 else None,
            self.cycle,
        )
        self._advance = self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)
        if error is None and len(self.history) == self.epoch_count:  # not left early
            self._save(finished=True)

    @property
    def steps_done(self) -> int:
        """Steps done in all epochs, which is also the number of the current step, counted from 0."""
        return len(self.history) * self.shard.steps + self._step

    @property
    def _seen(self) -> int:
        """Training examples seen by all ranks, as if all steps of an epoch had the same number."""
        return self.steps_done * self.shard.n // self.shard.steps

    @property
    def at_start_of_epoch(self) -> bool:
        """Whether no step of this epoch has been made."""
        return self._step == 0

    @property
    def done(self) -> float:
        """Fraction of all steps that is done."""
        return self.steps_done / (self.epoch_count * self.shard.steps)

    def epochs(self) -> Iterator[int]:
        """Yield the numbers, counted from 0, of the epochs that are not finished."""
        while len(self.history) < self.epoch_count:
            yield len(self.history)

    def batches(self, seed: int) -> Iterator["Batch"]:
        """Yield the remaining batches of this epoch. They may be taken ahead of the steps."""
        batches = self.shard.batches(seed, self.stage, len(self.history), "order")
        steps, first = self.epoch_count * self.shard.steps, self.steps_done
        for step, (rows, weight) in enumerate(islice(batches, self._step, None), first):
            rate = learning_rate_factor(self.schedule, step, steps)
            yield Batch(rows, weight, step, step / steps, rate)

    def step(self, loss: Tensor, rows: int) -> None:
        """Finish a step: count it, check the loss, move the progress bar, save a checkpoint if it is due.

        Parameters
        ----------
        loss
            Mean loss of this process's rows in the batch, a tensor [].
        rows
            Number of these rows.

        Raises
        ------
        GlannError
            If the loss is or was NaN or infinite.
        Stopped
            If a signal asked for it; the checkpoint has been saved.
        """
        if self._sum.device != loss.device:  # filled there, since a copy would make a GPU wait
            self._sum = torch.full((), self._sum.item(), dtype=torch.float64, device=loss.device)
        self._sum = self._sum + loss.detach() * rows
        self._rows += rows
        seen = self._seen
        self._step += 1
        for part in self.parts.values():
            if isinstance(part, AveragedModel):
                part.n_averaged += 1
        if not loss.is_cuda or self._step % READ_EVERY == 0:
            self._read()
        self._advance(self._seen - seen, self._note)
        if self.checkpoints is not None and self.checkpoints.due(self.steps_done):
            self._save()

    def end_epoch(self, **more: float) -> None:
        """Finish an epoch: add its mean loss over all ranks, to six digits, and `more` to the history.

        Raises
        ------
        GlannError
            If the run diverges.
        """
        self._read()
        self._check_numbers()
        loss = float(f"{total(self._sum).item() / self.shard.n:.6g}")
        self.history.append({"epoch": len(self.history) + 1, "loss": loss, **more})
        self._begin_epoch()
        if len(self.history) > PATIENCE and all(
            self._far_off(entry["loss"]) for entry in self.history[-PATIENCE:]
        ):
            best = min(entry["loss"] for entry in self.history)
            self.stop(
                f"the loss has been more than {DIVERGED} times its best ({best:g}) for {PATIENCE} epochs: "
                f"{loss:g}"
            )

    def stop(self, what: str) -> NoReturn:
        """Raise a `DivergedError` that says what went wrong, at which step, and what to do."""
        where = f"epoch {len(self.history)}"
        if self._step:
            where = f"epoch {len(self.history) + 1}, step {self._step}"
        kept = "no checkpoint was written yet"
        if self.checkpoints and self.checkpoints.path.is_file():
            kept = f"the last good checkpoint is {self.checkpoints.path}"
        raise DivergedError(f"{self.stage}: {where}: {what}", f"{kept}; {self.remedy}")

    def _read(self) -> None:
        value = self._sum.item()
        if not math.isfinite(value):
            self.stop(f"the loss is {value}")
        self._note = f"loss {value / max(self._rows, 1):.4f}"

    def _far_off(self, loss: float) -> bool:
        """Return whether a loss is far off: a multiple of the best, and worse than the first."""
        losses = [entry["loss"] for entry in self.history]
        return self.falls and bool(losses) and loss > max(DIVERGED * min(losses), losses[0])

    def _resume(self) -> None:
        """Continue from the checkpoint, if there is one."""

        def check(tensors: dict[str, Tensor], position: Any) -> None:
            check_state(tensors, self._checked(position).steps_done, self.parts)

        saved = self.checkpoints.load(check) if self.checkpoints else None
        if saved is None:
            return
        tensors, position = saved
        restore_state(tensors, self.parts)
        self.history, self._step = position["history"], position["step"]
        if rank() == 0:  # the checkpoint has the sums over all ranks
            self._rows = position["rows"]
            self._sum.fill_(position["sum"])
            say(f"{self.stage}: goes on from its checkpoint, with {100 * self.done:.0f} % done")

    def _checked(self, position: Any) -> Position:
        try:
            at = Position.model_validate(position)
        except ValidationError as error:
            raise ValueError(one_line(error)) from None
        batch_size = self.shard.strata
        fewest, most = at.step * (batch_size - 1), min(self.shard.n, at.step * batch_size)
        if (at.epochs, at.steps) != (self.epoch_count, self.shard.steps) or not fewest <= at.rows <= most:
            raise ValueError(f"step {at.step} of {at.steps}, {at.epochs} epochs, {at.rows} rows")
        return at

    def _check_numbers(self) -> None:
        """Stop the run if weights, or the optimiser's moments, are NaN or infinite."""
        networks = [part for part in self.parts.values() if isinstance(part, nn.Module)]
        weights = [weight for network in networks for weight in network.parameters()]
        if not torch.stack([weight.isfinite().all() for weight in weights]).all():
            self._read()
            self.stop(f"the loss is {math.nan}")
        moments = [
            moment
            for part in self.parts.values()
            if isinstance(part, Optimizer)
            for state in part.state.values()
            for moment in state.values()
        ]
        if moments and not torch.stack([moment.isfinite().all() for moment in moments]).all():
            self.stop("gradients are so large that their squares overflow")

    def _save(self, finished: bool = False) -> None:
        """Save a checkpoint, unless the run is diverging.

        Raises
        ------
        GlannError
            If weights are NaN or infinite.
        Stopped
            If a signal asked for it.
        """
        self._check_numbers()
        if self.checkpoints is None:
            return
        loss, rows = total(torch.stack([self._sum, torch.full_like(self._sum, self._rows)])).tolist()
        if rows and self._far_off(loss / rows) and not from_first(stop_requested()):
            return
        if not math.isfinite(loss):
            self.stop(f"the loss is {loss}")
        position = Position(
            history=self.history,
            step=self._step,
            rows=int(rows),
            sum=loss,
            epochs=self.epoch_count,
            steps=self.shard.steps,
            finished=finished,
        )
        self.checkpoints.save(flatten_state(self.parts), position.model_dump())
