"""Adam by groups, the schedule, and the moving average."""

import pytest
import torch
from torch import nn

from glann.errors import GlannError
from glann.training.optimization import MovingAverage, adam, learning_rate_factor, step
from glann.training.settings import ParameterGroup


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    factors = [learning_rate_factor("cosine", i, 2000) for i in range(2001)]
    assert factors[0] == 0.01 and factors[:100] == sorted(factors[:100])
    assert factors[99:] == sorted(factors[99:], reverse=True) and factors[99] > 0.99
    assert factors[1000] == pytest.approx(0.5) and factors[2000] == pytest.approx(0)
    assert [learning_rate_factor("constant", i, 20) for i in (0, 1, 19)] == [0.5, 1, 1]


def test_a_parameter_goes_to_the_first_group_that_matches():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [
        ParameterGroup(match="0.*", lr_multiplier=0.0),
        ParameterGroup(match="*.weight", lr_multiplier=0.5),
    ]
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = adam(module, 0.1, groups)
    module(torch.ones(1, 2)).sum().backward()
    step(optimizer, 0.1)
    moved = [(p - b).abs().max().item() for p, b in zip(module.parameters(), before, strict=True)]
    # Adam's first step is the learning rate in every entry: frozen, frozen, half, whole, half, whole.
    assert moved == pytest.approx([0, 0, 0.05, 0.1, 0.05, 0.1], abs=1e-6)
    with pytest.raises(GlannError, match=r'"conv" matches none of: 0\.weight, 0\.bias'):
        adam(module, 0.1, [ParameterGroup(match="conv")])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", [3, -4]), ("clip_norm", [0.6, -0.8]), ("clip_value", [1, -1]), ("normalize", [0.6, -0.8])],
)
def test_gradients_are_transformed_by_group(kind: str, expected: list[float]):
    parameter = nn.Module()
    parameter.w = nn.Parameter(torch.zeros(2))
    optimizer = adam(parameter, 0.1, [ParameterGroup(match="*", gradient=kind, limit=1.0)])
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.w.grad.tolist()))
    parameter.w.grad = torch.tensor([3.0, -4.0])
    step(optimizer, 0.1)
    assert seen[0] == pytest.approx(expected, abs=1e-5)


def test_normalize_lengthens_a_short_gradient_and_clip_norm_does_not():
    for kind, expected in (("normalize", 2.0), ("clip_norm", 0.5)):
        module = nn.Module()
        module.w = nn.Parameter(torch.zeros(2))
        optimizer = adam(module, 0.1, [ParameterGroup(match="*", gradient=kind, limit=2.0)])
        norms = []
        optimizer.register_step_pre_hook(lambda *_, m=module, out=norms: out.append(m.w.grad.norm().item()))
        module.w.grad = torch.tensor([0.3, 0.4])
        step(optimizer, 0.1)
        assert norms[0] == pytest.approx(expected, rel=1e-4)


def test_the_average_follows_within_a_short_run_and_lags_in_a_long_one():
    module = nn.Linear(1, 1)
    average = MovingAverage(module, 0.99)
    values = []
    for i in range(2000):
        nn.init.constant_(module.weight, float(i))
        average.update(module, average.share(i))
        values.append(average.module.weight.item())
    assert values[0] == 0 and 20 < values[29] < 29  # with 0.99 from the start it would be at 4
    assert values[-1] == pytest.approx(1999 - 99, abs=1)  # the lag of an average over 1 / (1 - 0.99) steps


def test_adam_forgets_gradients_and_their_squares_at_the_papers_rates():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = adam(module, 0.1, [])
    for gradient in (1.0, 0.0):
        module.weight.grad = torch.tensor([[gradient]])
        step(optimizer, 0.1)
    # Adam (arXiv:1412.6980, algorithm 1) with betas 0.5 and 0.999: the first step is one learning rate long.
    moment, square = 0.5 * 0.5 / (1 - 0.5**2), 0.999 * 0.001 / (1 - 0.999**2)
    assert module.weight.item() == pytest.approx(-0.1 - 0.1 * moment / square**0.5, rel=1e-4)
