"""The coarse part of a training takes less time per step than the rest, which is known before it begins."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from glann.glo import pace as module
from glann.glo.losses import FeatureDistance, reconstruction_loss
from glann.glo.pace import share_of_time
from glann.glo.settings import Loss
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import initialize
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream


def infogan() -> DecoderNetwork:
    config = Decoder(kind="infogan", width=4)
    decoder = DecoderNetwork(DecoderArchitecture(config=config, latent_dim=4, size=32, channels=3))
    initialize(decoder, stream(0, "test"))
    return decoder


class Slowly:
    """Compares as it would, and takes so many seconds by the clock of the test."""

    def __init__(self, compared: FeatureDistance, clock: list[float], seconds: float):
        self.compared, self.clock, self.seconds = compared, clock, seconds
        self.draw, self.halve = compared.draw, compared.halve

    def __call__(self, *given: object) -> torch.Tensor:
        self.clock[0] += self.seconds
        return self.compared(*given)  # type: ignore[arg-type]


@pytest.mark.parametrize("coarse", [0.25, 0.6])
def test_later_steps_are_slower_and_timing_them_changes_nothing(
    random_vgg: str, cpu: Execution, coarse: float, monkeypatch: pytest.MonkeyPatch
):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    decoder = infogan()
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    config = Loss(kind="perceptual", levels=3, weights=random_vgg, coarse=coarse, texture=1.0)
    loss = reconstruction_loss(config, cpu, images)
    clock, state = [0.0], torch.get_rng_state()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    loss.fine, loss.coarse = Slowly(loss.fine, clock, 3.0), Slowly(loss.coarse, clock, 1.0)
    pace = share_of_time(loss, decoder, torch.randn(8, 4, generator=stream(0, "z")), images, cpu)
    assert (torch.get_rng_state() == state).all()
    assert all((value == before[name]).all() for name, value in decoder.state_dict().items())
    assert decoder.training and all(p.grad is None for p in decoder.parameters())
    whole = coarse + 3 * (1 - coarse)
    assert [pace(share) for share in (0.0, coarse / 2, coarse, 1.0)] == pytest.approx(
        [0.0, coarse / 2 / whole, coarse / whole, 1.0]
    )


def test_without_a_coarse_part_all_steps_take_equally_long(cpu: Execution):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    loss = reconstruction_loss(Loss(kind="l1"), cpu, images)
    pace = share_of_time(loss, infogan(), torch.zeros(2, 4), images, cpu)
    assert pace(0.3) == 0.3
