"""Exact search by bfloat16 products."""

import pytest
import torch

from glann.neighbors.bfloat16 import nearest_row
from glann.runtime.randomness import stream


@pytest.mark.parametrize("scale", [0.01, 1, 1000])
@pytest.mark.parametrize("shift", [0, 3])
def test_bfloat16_products_find_exactly_what_float32_does(scale: float, shift: float):
    draws = stream(0, "scan")
    database = scale * (torch.randn(5000, 12, generator=draws) + shift)
    database[3000:3500] = database[0] + scale * 1e-4 * torch.randn(500, 12, generator=draws)  # all but equal
    queries = torch.cat([database[:700], scale * (torch.randn(4500, 12, generator=draws) + shift)])
    distances, rows = nearest_row(queries, database)
    exact = (queries.double()[:, None] - database.double()[None]).square().sum(dim=2)
    best, expected = exact.min(dim=1)
    # Two rows as near as float32 can tell may be taken for each other.
    assert (rows == expected).float().mean() > 0.99
    assert torch.allclose(exact.gather(1, rows[:, None])[:, 0].sqrt(), best.sqrt(), atol=1e-3 * scale)
    assert torch.allclose(
        distances.double(), exact.gather(1, rows[:, None])[:, 0], rtol=1e-3, atol=1e-6 * scale
    )
