"""Images of a batch on their way to the device."""

import numpy as np
import pytest
import torch

from glann.images.tensors import to_float, upload
from glann.runtime.compute import Execution
from glann.training.batches import one_ahead


def test_a_thread_ahead_keeps_the_order_and_passes_errors_on():
    started = []

    def half(item: int) -> float:
        started.append(item)
        return 10 / item

    found = one_ahead(half, [1, 2, 5, 0])
    assert [next(found) for _ in range(3)] == [10, 5, 2]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert started == [1, 2, 5, 0]


def test_images_reach_the_network_channels_last(shapes: np.ndarray, cpu: Execution):
    batch = to_float(upload(shapes[:5], cpu))
    assert batch.shape == (5, 3, 16, 16) and batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((batch[2, 1] * 255).round().byte(), torch.from_numpy(shapes[2, :, :, 1].copy()))
