"""Random streams."""

import numpy as np
import pytest
import torch

from glann.runtime.randomness import noise_rows, stream, stream_seed


def test_a_stream_depends_on_its_name_alone():
    first = torch.randn(5, generator=stream(0, "glo", 3, "order"))
    torch.randn(100, generator=stream(0, "glo", 2, "order"))
    assert torch.equal(first, torch.randn(5, generator=stream(0, "glo", 3, "order")))
    names = [(0, "glo", 3), (1, "glo", 3), (0, "glo", 4), (0, "imle", 3), (0, "glo3")]
    assert len({stream_seed(*name) for name in names}) == len(names)


def test_no_stream_touches_the_global_generators():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    noise_rows(0, 100, 8, 0, "sample")
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 64), (63, 65), (64, 64), (100, 199)])
def test_a_slice_of_the_noise_table_is_the_same_whatever_else_is_drawn(start: int, stop: int):
    table = noise_rows(0, 200, 3, 7, "sample")
    assert torch.equal(noise_rows(start, stop, 3, 7, "sample"), table[start:stop])


def test_noise_is_standard_normal():
    noise = noise_rows(0, 20_000, 4, 0, "test")
    # The mean of 20000 draws has a standard deviation of 0.007, their spread one of 0.005.
    assert noise.mean(dim=0).abs().max() < 0.03 and (noise.std(dim=0) - 1).abs().max() < 0.03
