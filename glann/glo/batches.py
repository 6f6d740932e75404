"""Loading the images of each batch onto the device."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glann.images.tensors import to_float, upload
from glann.runtime.compute import Execution

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    images: NDArray[np.uint8], batches: Iterator[tuple[Tensor, float]], execution: Execution
) -> Iterator[tuple[Tensor, float, Tensor]]:
    """Add the images of each batch, float32 [b, c, h, w], to its rows and weight.

    For a GPU, a thread reads the next batch during this one. On a CPU it would only compete for the cores.
    """

    def read(batch: tuple[Tensor, float]) -> tuple[Tensor, float, Tensor]:
        rows, weight = batch
        return execution.to_device(rows), weight, upload(images[rows.numpy()], execution)

    ahead = map(read, batches) if execution.device.type == "cpu" else one_ahead(read, batches)
    for rows, weight, pixels in ahead:
        yield rows, weight, to_float(pixels)


def one_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``function(item)`` for each item; a thread works one item ahead."""
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[Result] | None = None
        for item in items:
            following = thread.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()
