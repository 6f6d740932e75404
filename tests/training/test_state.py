"""The state of a training run as tensors."""

import torch
from torch import nn

from glann.training.optimization import MovingAverage, adam, step
from glann.training.state import flatten_state, restore_state


def test_state_of_networks_and_optimisers_survives_being_flattened():
    def make() -> tuple[nn.Module, torch.optim.Adam]:
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        return module, adam(module, 0.1, [])

    module, optimizer = make()
    average = MovingAverage(module, 0.9)
    for i in range(3):
        module(torch.randn(4, 2)).square().sum().backward()
        step(optimizer, 0.1)
        average.update(module, average.share(i))
    state = flatten_state({"module": module, "optimizer": optimizer, "average": average})
    other, other_optimizer = make()
    other_average = MovingAverage(other, 0.9)
    others = {"module": other, "optimizer": other_optimizer, "average": other_average}
    restore_state(state, others)
    again = flatten_state(others)
    assert state.keys() == again.keys() and all(torch.equal(state[key], again[key]) for key in state)
