"""Trainings and samples on a real GPU."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL, clusters, small_generator
from small_peers import SECTIONS, train
from training_project import losses, project, run, start, wait_for

from glann.glo.settings import Glo, Loss
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.networks.decoders.settings import Decoder
from glann.networks.mappings.settings import Mapping
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute
from glann.training import replay

pytestmark = pytest.mark.gpu
ROUNDING = 0.02  # of a loss, after a few epochs in float32: sums on a GPU have another order in each run


def on_gpu(recorded: bool = True, precision: str = "float32") -> Execution:
    return execution(Compute(device="cuda", precision=precision, cuda_graphs=recorded))


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every recording that is made."""
    made: list[object] = []
    original = replay._Recording.__init__

    def noting(self: object, *given: object) -> None:
        original(self, *given)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(replay._Recording, "__init__", noting)
    return made


@pytest.mark.parametrize("kind", ["infogan", "dcgan", "residual", "smooth"])
@pytest.mark.parametrize("loss", ["l1", "laplacian", "perceptual", "windows"])
def test_glo_learns_on_a_gpu_what_it_learns_on_a_cpu(
    kind: str, loss: str, random_vgg: str, recordings: list[object], cpu: Execution
):
    size = 64 if kind == "dcgan" else 32
    images = np.random.default_rng(0).integers(0, 256, (70, size, size, 3), np.uint8)
    how = (
        Loss(kind=loss)
        if loss in ("l1", "laplacian")
        else Loss(
            kind="perceptual",
            weights=random_vgg,
            levels=2,
            texture=1.0,
            coarse=0.5,
            crop=size // 2 if loss == "windows" else None,
        )
    )
    decoder = Decoder(kind=kind, width=8)
    config = Glo(decoder=decoder, loss=how, latent_dim=8, batch_size=16, epochs=4, latent_noise=0.2)
    ends = [
        train_glo(images, config, 0, on).history[-1]["loss"] for on in (on_gpu(), on_gpu(recorded=False), cpu)
    ]
    assert recordings
    assert ends[:2] == pytest.approx(ends[2:] * 2, rel=ROUNDING)


def test_imle_learns_on_a_gpu_what_it_learns_on_a_cpu(recordings: list[object], cpu: Execution):
    mlp = Mapping(kind="mlp", width=16, depth=2)
    for changes in ({}, {"index": "IVF4,Flat;nprobe=4"}, {"residuals": 0.5}, {"mapping": mlp}):
        # From the third epoch on, a search decides otherwise if latents differ by a millionth.
        config = SMALL.model_copy(update={"epochs": 2, **changes})
        runs = [fit_imle(clusters(), config, 0, on).history for on in (on_gpu(), on_gpu(False), cpu)]
        for epochs in zip(*runs, strict=True):
            for key in ("loss", "nearest"):
                found = [epoch[key] for epoch in epochs]
                assert found[:2] == pytest.approx([found[2]] * 2, rel=ROUNDING)
    assert recordings


@pytest.mark.parametrize("name", SECTIONS)
def test_a_rival_learns_on_a_gpu_what_it_learns_on_a_cpu(name: str, recordings: list[object], cpu: Execution):
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), np.uint8)
    ends = [
        train(name, images, on, decoder={"kind": "residual"}).history[0]["loss"]
        for on in (on_gpu(), on_gpu(recorded=False), cpu)
    ]
    assert recordings
    assert ends[:2] == pytest.approx(ends[2:] * 2, rel=ROUNDING)


def test_bfloat16_learns_too(random_vgg: str, recordings: list[object]):
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8)
    config = Glo(
        decoder=Decoder(width=8),
        loss=Loss(kind="perceptual", weights=random_vgg, levels=3),
        latent_dim=8,
        batch_size=16,
        epochs=4,
    )
    ends = [
        train_glo(images, config, 0, on_gpu(precision=p)).history[-1]["loss"] for p in ("auto", "float32")
    ]
    assert recordings and ends[0] == pytest.approx(ends[1], rel=0.05)


def test_samples_of_a_gpu_look_like_those_of_a_cpu(cpu: Execution):
    found, expected = (small_generator(on).sample(100, 0).astype(int) for on in (on_gpu(), cpu))
    assert np.abs(found - expected).max() <= 2  # of 255 grey levels, by rounding


def test_a_run_on_a_gpu_that_is_killed_goes_on(shapes: np.ndarray, tmp_path: Path):
    # The default decoder does not learn such simple images for long.
    glo = {"epochs": 300, "decoder": {"kind": "infogan", "width": 8}}
    changes = {"compute": {"device": "cuda"}, "glo": glo}
    folder = project(tmp_path / "killed", shapes, changes, checkpoint_minutes=0)
    process = start(folder, "stages.glo")
    wait_for(lambda: any((folder / ".checkpoints").glob("glo-*")))
    time.sleep(2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = start(folder, "stages.glo")
    assert again.wait(300) == 0
    assert again.stderr and "goes on from its checkpoint" in again.stderr.read()
    assert len(losses(folder, "glo")) == 300


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are fewer than two GPUs")
def test_two_gpus_learn_what_one_learns(shapes: np.ndarray, tmp_path: Path):
    one = project(tmp_path / "one", shapes, {"compute": {"device": "cuda"}})
    two = project(tmp_path / "two", shapes, {"compute": {"device": "cuda"}}, processes=2)
    for stage in ("glo", "imle"):
        for folder in (one, two):
            run(folder, f"stages.{stage}")
        assert losses(two, stage)[-1] == pytest.approx(losses(one, stage)[-1], rel=0.2)
