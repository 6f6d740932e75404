"""What the steps of a training read, on its way to the device."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from glann.runtime.compute import Execution

Item = TypeVar("Item")
Result = TypeVar("Result")
FLOAT = torch.float32
Inputs = dict[str, Any]
"""All that a training step reads and that differs from step to step, by name: tensors and numbers. On a GPU,
numbers are tensors float32 [] too."""


def read_ahead(
    read: Callable[[Item], Inputs], items: Iterable[Item], execution: Execution
) -> Iterator[Inputs]:
    """Read what each step needs, and copy it to the device.

    For a GPU, a thread reads for the next step during this one. On a CPU it would only compete for the cores.

    Parameters
    ----------
    read
        Returns tensors on the CPU, and numbers.
    items
        What `read` is called with, once per step.
    execution
        The device.
    """
    if execution.device.type == "cpu":
        return map(read, items)

    def copied(item: Item) -> Inputs:
        return {
            name: execution.to_device(
                torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else FLOAT)
            )
            for name, value in read(item).items()
        }

    stream = torch.cuda.current_stream(execution.device)

    def begin() -> None:
        """Choose GPU and stream: each thread has its own, at first GPU 0, on which it would take memory."""
        torch.cuda.set_device(execution.device)
        torch.cuda.set_stream(stream)

    return one_ahead(copied, items, begin)


def one_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], begin: Callable[[], None] = lambda: None
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item; a thread, which calls `begin` first, works one item ahead."""
    with ThreadPoolExecutor(1, initializer=begin) as thread:
        waiting: Future[Result] | None = None
        for item in items:
            following = thread.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()
