"""Replaying training steps on a GPU.

A step starts hundreds of small operations, and starting one takes longer than computing it. A CUDA graph
records them once and then starts all of them together (see "CUDA Graphs" in torch's CUDA semantics).
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from glann.runtime.compute import Execution
from glann.runtime.console import say
from glann.runtime.processes import ranks
from glann.runtime.reporting import memory_ran_out
from glann.training.batches import Inputs

WARM_UP = 3  # steps before recording, in which libraries allocate what they keep


class Replay:
    """Runs a training step; on a GPU, from the fourth time on, by replaying a recording.

    With several processes, or on a CPU, it only calls the step.

    Parameters
    ----------
    step
        Makes a step and returns its loss. All that differs between two steps has to be in its inputs: a
        recording repeats the operations on the same memory, but runs no Python.
    optimizer
        Whose gradients are cleared if a step could not be recorded to its end.
    execution
        The device, and whether steps are recorded there.
    """

    def __init__(
        self, step: Callable[[Inputs], Tensor], optimizer: torch.optim.Optimizer, execution: Execution
    ):
        self.step, self.optimizer, self.device = step, optimizer, execution.device
        self.records = execution.device.type == "cuda" and execution.records and ranks() == 1
        self._phase: Hashable = None
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self._stream: Any = None  # on which steps are recorded
        self._pool: Any = None  # memory that recordings share, since one is replayed at a time

    def __call__(self, inputs: Inputs, phase: Hashable = None) -> Tensor:
        """Make a step.

        Parameters
        ----------
        inputs
            The step's inputs, from `read_ahead`.
        phase
            What part of the training this is. Steps of different parts may differ in their operations.

        Returns
        -------
        Tensor
            The loss, float32 []. It is overwritten in the next step.
        """
        if not self.records:
            return self.step(inputs)
        if phase != self._phase:  # earlier recordings hold memory
            self._recordings.clear()
            self._calls.clear()
            self._phase, self._pool = phase, None
        shapes = tuple(value.shape for value in inputs.values())
        if self._calls[shapes] < WARM_UP:
            self._calls[shapes] += 1
            return self._aside(inputs)
        if shapes not in self._recordings and not self._record(shapes, inputs):
            return self.step(inputs)
        return self._recordings[shapes](inputs)

    def _aside(self, inputs: Inputs) -> Tensor:
        """Make a step on the stream that records, as recording needs before."""
        self._stream = self._stream or torch.cuda.Stream(self.device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self.step(inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _record(self, shapes: Hashable, inputs: Inputs) -> bool:
        """Record a step for inputs of these shapes; return whether that was possible."""
        current = torch.cuda.current_stream()
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._recordings[shapes] = _Recording(self.step, inputs, self._pool, self._stream)
            return True
        except RuntimeError as error:
            cause = error.__context__ or error  # a failed recording fails again where it ends
            if any(isinstance(e, Exception) and memory_ran_out(e) for e in (error, cause)):
                raise
            why = " ".join(str(cause).split())[:150]
        finally:
            torch.cuda.set_stream(current)  # torch does not return to it if a recording fails
        say(f"this GPU cannot record training steps ({why}); it goes on without, which takes longer")
        self.records, self._pool = False, None
        self._recordings.clear()
        self.optimizer.zero_grad(set_to_none=True)
        return False


class _Recording:
    """A recorded step, for inputs of the same shapes."""

    def __init__(self, step: Callable[[Inputs], Tensor], inputs: Inputs, pool: Any, stream: Any):
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: the one that reads ahead allocates memory.
        with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
            self.loss = step(self.inputs)

    def __call__(self, inputs: Inputs) -> Tensor:
        """Copy the inputs to where the recording reads them, and replay it."""
        for name, value in inputs.items():
            self.inputs[name].copy_(value, non_blocking=True)
        self.graph.replay()
        return self.loss
