"""What is measured of a mapping: range, moments, residuals."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from small import SMALL, clusters

from glann.imle.calibration import borrowed_residuals, moment_correction, moments
from glann.imle.fit import fit_imle
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.runtime.checkpoint_files import stored
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.runtime.signals import Stopped, stop_signals
from glann.training.checkpoints import Checkpoints


@pytest.mark.parametrize(("center", "spread"), [(5, 0.002), (1000, 1), (0.1, 1e-4), (3e8, 1e8), (0, 1e-9)])
def test_a_cloud_far_from_0_is_no_sphere(center: float, spread: float, cpu: Execution):
    cloud = center + spread * torch.randn(400, 8, generator=stream(0, "cloud"))
    mapping = fit_imle(cloud, SMALL.model_copy(update={"epochs": 2}), 0, cpu).mapping
    with torch.no_grad():
        samples = mapping(torch.randn(4000, 2, generator=stream(1, "noise")))
    assert not mapping.on_sphere
    assert samples.std(dim=0).numpy() == pytest.approx(cloud.std(dim=0).numpy(), rel=0.2)
    assert (samples.mean(dim=0) - cloud.mean(dim=0)).abs().max() < 0.2 * spread + 1e-6 * center


@pytest.mark.parametrize("on_sphere", [True, False])
def test_samples_have_the_mean_and_covariance_of_the_latents(on_sphere: bool, cpu: Execution):
    cloud = torch.randn(1000, 4, generator=stream(0, "cloud")) * torch.tensor([3.0, 1.0, 1.0, 0.3]) + 1
    cloud = F.normalize(cloud, dim=1) if on_sphere else cloud
    noise = torch.randn(20_000, 2, generator=stream(1, "noise"))

    def error(correct: bool) -> float:
        config = SMALL.model_copy(update={"epochs": 3, "correct_moments": correct})
        mapping = fit_imle(cloud, config, 0, cpu).mapping
        with torch.no_grad():
            samples = mapping(noise)
        means = (samples.mean(dim=0) - cloud.mean(dim=0)).norm()
        return (means + (torch.cov(samples.T) - torch.cov(cloud.T)).norm()).item()

    assert error(correct=True) < 0.2 * error(correct=False)


def mapping_of(dim: int, on_sphere: bool) -> MappingNetwork:
    mapping = MappingNetwork(MappingArchitecture(config=SMALL.mapping, noise_dim=2, latent_dim=dim))
    mapping.on_sphere.fill_(on_sphere)
    return mapping


def test_off_the_sphere_even_the_least_spread_is_corrected_exactly():
    spreads = torch.logspace(0, -2, 16)
    latents = torch.randn(2000, 16, generator=stream(0, "latents")) * spreads
    outputs = torch.randn(5000, 16, generator=stream(0, "outputs")) * spreads.flip(0).add(spreads) + 0.1
    mean, covariance = moments([latents])
    mapping = mapping_of(16, on_sphere=False)
    mapping.matrix, mapping.offset = (
        part.float() for part in moment_correction(mapping, outputs, mean, covariance)
    )
    reached, spread = moments(mapping.corrected(outputs).split(700))
    assert torch.allclose(reached, mean, atol=1e-6)
    relative = torch.linalg.solve(covariance, spread) - torch.eye(16)
    assert relative.abs().max() < 1e-4  # rows are float32


def test_moments_in_blocks_are_those_of_all_rows():
    rows = 1000 + torch.randn(999, 5, generator=stream(0, "rows"))
    mean, covariance = moments(rows.split(100))
    assert torch.allclose(mean, rows.double().mean(dim=0), rtol=1e-12)
    assert torch.allclose(covariance, torch.cov(rows.double().T, correction=0), rtol=1e-9)


def test_correcting_moments_takes_little_memory_beside_the_samples():
    code = """
import resource, torch
from test_calibration import mapping_of
from glann.imle.calibration import moment_correction, moments
samples = torch.nn.functional.normalize(torch.randn(65_536, 128), dim=1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
moment_correction(mapping_of(128, True), samples, *moments([samples[:500]]))
print(peak() - before)
"""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/imle'}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True)
    assert float(done.stdout) < 40  # MiB; the samples in float64 are 64, of which some copies were held


def test_a_run_stopped_while_it_is_calibrated_goes_on_there_and_ends_the_same(
    cpu: Execution, tmp_path: Path, request: pytest.FixtureRequest
):
    latents = torch.randn(300, 160, generator=stream(0, "latents"))
    config = SMALL.model_copy(update={"epochs": 1, "residuals": 0.5})
    checkpoints = Checkpoints(tmp_path, "imle", "", 60)

    def ask_to_stop_when_trained() -> None:
        while not any(checkpoint.state == "finished" for checkpoint in stored(tmp_path)):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="run the same command to continue"), stop_signals():
        threading.Thread(target=ask_to_stop_when_trained).start()
        fit_imle(latents, config, 0, cpu, checkpoints)
        pytest.fail("calibration did not stop")
    whole = fit_imle(latents, config, 0, cpu).mapping
    request.getfixturevalue("no_matching")
    resumed = fit_imle(latents, config, 0, cpu, checkpoints).mapping
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_residuals_of_pairs_nearby_give_back_what_a_regression_leaves(cpu: Execution):
    """Two numbers of a latent follow the noise; a third is spread that one number of noise cannot reach."""
    turn = torch.rand(1500, generator=stream(0, "turn")) * 2 * math.pi
    height = torch.randn(1500, generator=stream(1, "height")) * (
        0.2 + 0.2 * turn.cos()
    )  # not alike everywhere
    cloud = torch.stack([3 * turn.cos(), 3 * turn.sin(), height], dim=1)
    config = SMALL.model_copy(
        update={"noise_dim": 1, "epochs": 20, "correct_moments": False, "candidates": 1.0}
    )
    noise = torch.randn(4000, 1, generator=stream(2, "noise"))

    def spread(share: float, at: float) -> float:
        mapping = fit_imle(cloud, config.model_copy(update={"residuals": share}), 0, cpu).mapping
        with torch.no_grad():
            samples = mapping(noise)
        return samples[(samples[:, 0] / 3 * at > 0.7), 2].std().item()

    wide, narrow = (height[(turn.cos() * at > 0.7)].std().item() for at in (1, -1))
    assert spread(0.0, 1) < 0.5 * wide  # without them
    assert 0.7 * wide < spread(1.0, 1) < 1.3 * wide
    assert spread(0.0, 1) < spread(0.5, 1) < spread(1.0, 1)
    assert spread(1.0, -1) < 3 * narrow < spread(1.0, 1)


def test_an_anchor_borrows_its_residual_from_a_neighbour():
    architecture = MappingArchitecture(config=SMALL.mapping, noise_dim=2, latent_dim=3)
    candidates = torch.randn(200, 3, generator=stream(0, "candidates"))
    pulls = torch.randn(200, 3, generator=stream(0, "pulls"))

    def kept(rows: list[int], share: float) -> MappingNetwork:
        mapping, matched = MappingNetwork(architecture), candidates[rows]
        draws = stream(0, "draws")
        mapping.set_residuals(*borrowed_residuals(matched, matched + pulls[: len(rows)], share, draws))
        return mapping

    residuals = kept([*range(200)], 0.5).nearest_residual(candidates)
    apart, lenders = (0.5 * pulls[:, None] - residuals).norm(dim=2).min(dim=0)
    assert apart.max() < 1e-5
    between = (candidates[:, None] - candidates).norm(dim=2)
    ranks = between.argsort(dim=1).argsort(dim=1)[torch.arange(200), lenders]  # 0 is the anchor itself
    assert set(ranks.tolist()) == {1, 2, 3}

    # Three latents share the first of two candidates: it has only the fourth's residual to borrow.
    shared = kept([0, 0, 0, 1], 1.0)
    assert len(shared.anchors) == 2
    assert torch.allclose(shared.nearest_residual(candidates[:1]), pulls[3:4], atol=1e-6)
    assert len(kept([0, 0], 1.0).anchors) == 0
    assert not kept([0, 0], 1.0).nearest_residual(candidates[:5]).any()
    two = kept([0, 1], 1.0)
    assert torch.allclose(two.nearest_residual(candidates[:2]), pulls[:2].flip(0), atol=1e-6)


def test_residuals_are_kept_of_so_many_latents_at_most(cpu: Execution, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("glann.imle.calibration.RESIDUALS", 100)
    config = SMALL.model_copy(update={"epochs": 1, "residuals": 0.5})
    mapping = fit_imle(clusters(), config, 0, cpu).mapping
    assert 2 <= len(mapping.anchors) == len(mapping.residuals) <= 100
    without = fit_imle(clusters(), config.model_copy(update={"residuals": 0}), 0, cpu).mapping
    assert not {"anchors", "residuals"} & without.state_dict().keys()


def test_batch_norm_has_the_statistics_of_the_averaged_weights(cpu: Execution):
    """The average lags behind the weights of training, whose statistics are others."""
    config = SMALL.model_copy(
        update={"mapping": Mapping(kind="mlp", width=16, depth=1), "epochs": 4, "lr": 0.03, "ema": 0.99}
    )
    linear, norm = fit_imle(clusters(), config, 0, cpu).mapping.network[:2]
    with torch.no_grad():
        reached = linear(torch.randn(20_000, 2, generator=stream(0, "noise")))
    # 1200 draws know a variance to some 5 %.
    assert torch.allclose(norm.running_var, reached.var(dim=0), rtol=0.15)
