"""Priors fitted to latents whose distribution is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import glann.evaluate.priors
from glann.errors import GlannError
from glann.evaluate.priors import draw_prior
from glann.evaluate.settings import Evaluate
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream

KINDS = ("gaussian", "mixture", "flow", "iresnet", "flow_matching")


def two_caps(n: int) -> Tensor:
    """Unit rows around two opposite poles."""
    poles = torch.tensor([2.0, 0, 0, 0]) * (torch.arange(n) % 2 * 2 - 1)[:, None]
    return F.normalize(poles + 0.5 * torch.randn(n, 4, generator=stream(0, "caps")), dim=1)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    run = Execution(torch.device("cpu"), torch.float32)
    config = Evaluate(mixture_components=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glann.evaluate.priors, "STEPS", 500)
        patch.setattr(glann.evaluate.priors, "WIDTH", 64)
        patch.setattr(glann.evaluate.priors, "BLOCKS", 4)
        patch.setattr(glann.evaluate.priors, "BATCH", 128)
        return {kind: draw_prior(kind, two_caps(1500), 1000, 0, config, run) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_latents_mean_and_spread(drawn: dict[str, Tensor], kind: str):
    rows, wanted = drawn[kind], two_caps(1500)
    assert rows.shape == (1000, 4) and rows.dtype == torch.float32 and rows.isfinite().all()
    # A mean of 1000 draws is known to 3 % of the spread; flows are trained for a few seconds only.
    assert ((rows.mean(0) - wanted.mean(0)).abs() < 0.2 * wanted.std(0)).all()
    assert (rows.std(0) / wanted.std(0) - 1).abs().max() < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_a_gaussian_keep_two_groups_apart(drawn: dict[str, Tensor], kind: str):
    # Of the latents none are there, of a Gaussian's draws 38 %.
    between = (drawn[kind][:, 0].abs() < 0.5).float().mean()
    assert between > 0.3 if kind == "gaussian" else between < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_two_latents_are_enough_for_gaussians_and_refused_by_flows(kind: str, cpu: Execution):
    latents = two_caps(2)
    if kind in {"gaussian", "mixture"}:
        assert draw_prior(kind, latents, 10, 0, Evaluate(), cpu).isfinite().all()
    else:
        with pytest.raises(GlannError, match=rf"evaluate\.priors: {kind} needs 4 or more latents"):
            draw_prior(kind, latents, 10, 0, Evaluate(), cpu)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_are_all_equal_are_drawn_again(
    kind: str, cpu: Execution, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(glann.evaluate.priors, "STEPS", 60)
    equal = F.normalize(torch.ones(60, 4), dim=1)
    # A covariance of zero is regularised by 1e-8, so Gaussians draw 1e-4 beside them.
    assert (draw_prior(kind, equal, 10, 0, Evaluate(), cpu) - equal[:10]).abs().max() < 1e-3
