"""How many images fit a time, and the command that writes it down."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fails_in_one_line, glann, glann_at_once
from ruamel.yaml import YAML
from small_peers import SMALL, section
from training_project import project

from glann.glo.settings import Loss
from glann.networks.decoders.network import DecoderArchitecture
from glann.networks.decoders.settings import Decoder
from glann.params import load_settings
from glann.peers.pace import images_in
from glann.peers.settings import Peers, Vae
from glann.peers.train import STEPS
from glann.presets import commented_yaml
from glann.runtime.compute import Execution
from glann.runtime.npy import save_npy
from glann.training.batches import Inputs
from glann.training.course import Batch


def test_more_images_fit_a_longer_time(shapes: np.ndarray, cpu: Execution):
    architecture = DecoderArchitecture(config=Decoder(width=4), latent_dim=8, size=16, channels=3)
    config = Vae.model_validate(SMALL["vae"])
    few, many = (
        images_in(seconds, "vae", shapes, config, architecture, Loss(kind="l1"), cpu) for seconds in (2, 30)
    )
    assert 5 < many / few < 100  # fifteen, but seconds go before the first step, and machines are busy
    assert few >= len(shapes) and all(count % 10 ** (len(str(count)) - 3) == 0 for count in (few, many))


class Sleeps:
    """A training step that takes 10 ms, after a second of preparation."""

    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])

    def __init__(self, *given: object):
        time.sleep(1)

    def read(self, batch: Batch) -> Inputs:
        return {"rows": batch.rows}

    def phase(self, done: float) -> None:
        return None

    def __call__(self, x: Inputs) -> torch.Tensor:
        time.sleep(0.01)
        return torch.zeros(())


@pytest.mark.parametrize(("name", "at_once"), [("gan", 16), ("wgan_gp", 48)])
def test_all_images_of_a_step_and_the_time_before_the_first_count(
    name: str, at_once: int, shapes: np.ndarray, cpu: Execution, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(STEPS, name, Sleeps)
    architecture = DecoderArchitecture(config=Decoder(width=4), latent_dim=8, size=16, channels=3)
    config = section(name, batch_size=16, **({"critic_steps": 3} if name == "wgan_gp" else {}))
    many = np.repeat(shapes, 2, axis=0)  # 96: batches are all full
    found = images_in(11, name, many, config, architecture, Loss(), cpu)
    assert 0.6 < found / (10 / 0.01 * at_once) <= 1  # a sleep may be longer


def test_a_time_that_is_too_short_for_one_pass_is_said(
    shapes: np.ndarray, cpu: Execution, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(STEPS, "gan", Sleeps)
    architecture = DecoderArchitecture(config=Decoder(width=4), latent_dim=8, size=16, channels=3)
    config = section("gan", batch_size=16)
    assert images_in(0.5, "gan", shapes, config, architecture, Loss(), cpu) == len(shapes)
    said = "the least there is, a pass over all 48 images, which takes 1 s instead of 0.5 s"
    assert said in capfd.readouterr().err
    images_in(3, "gan", shapes, config, architecture, Loss(), cpu)
    assert "the least there is" not in capfd.readouterr().err


def test_both_parts_of_a_perceptual_loss_count(
    shapes: np.ndarray, cpu: Execution, random_vgg: str, capfd: pytest.CaptureFixture[str]
):
    """The coarse part of half the steps is faster, so more images fit than without it."""
    images = np.repeat(np.repeat(shapes, 2, axis=1), 2, axis=2)
    architecture = DecoderArchitecture(config=Decoder(width=4), latent_dim=8, size=32, channels=3)
    config = Vae.model_validate(SMALL["vae"])
    counts = [
        images_in(
            12,
            "vae",
            images,
            config,
            architecture,
            Loss(kind="perceptual", levels=2, coarse=coarse, weights=random_vgg),
            cpu,
        )
        for coarse in (0.0, 0.9)
    ]
    assert counts[1] > 1.2 * counts[0]
    assert capfd.readouterr().err.count("glann: vae: ") == 2


def test_the_command_writes_the_numbers_and_keeps_the_rest(shapes: np.ndarray, tmp_path: Path):
    folder = project(tmp_path / "small", shapes, processes=2)
    file = folder / "peers/params.yaml"
    file.parent.mkdir()
    before = Peers(models=["gan", "vae"], seeds=[3, 4])
    file.write_text(commented_yaml(before))
    done = glann("peers", "3.125", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "glann: glo and imle would take about " in done.stderr
    assert "compute.processes: 2: all times here are those of one process" in done.stderr
    after = load_settings(file, Peers)
    told = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert told.keys() == {"gan", "vae"}
    for name in before.models:
        count = getattr(after, name).images
        assert count != getattr(before, name).images and told[name] == f"{name}: {count:,} images"
        assert getattr(after, name).seconds == 3.125
        put_back = getattr(after, name).model_copy(
            update={"images": getattr(before, name).images, "seconds": None}
        )
        assert put_back == getattr(before, name)
    assert after.energy == before.energy
    comments = [line for line in commented_yaml(before).splitlines() if "#" in line]
    assert comments == [line for line in file.read_text().splitlines() if "#" in line]
    assert YAML(typ="safe").load(file.read_text())["foreign"] is None and "foreign: null" in file.read_text()


def test_what_is_missing_or_wrong_is_one_line(shapes: np.ndarray, tmp_path: Path):
    folder = project(tmp_path / "small", shapes)
    assert "glann params --peers > peers/params.yaml" in fails_in_one_line(glann_at_once("peers", cwd=folder))
    (folder / "peers").mkdir()
    (folder / "peers/params.yaml").write_text(commented_yaml(Peers()))
    for seconds in ("0", "1e9", "inf"):
        line = fails_in_one_line(glann_at_once("peers", seconds, cwd=folder))
        assert "give a time above 0 and below 1e9" in line
    (folder / "data/prepare/images.npy").unlink()
    assert "run: dvc repro" in fails_in_one_line(glann_at_once("peers", "10", cwd=folder))
    save_npy(folder / "data/prepare/images.npy", np.zeros((5, 32, 32, 1), np.uint8))  # grey
    assert fails_in_one_line(glann_at_once("peers", "10", cwd=folder)).endswith(
        "needs two or more images as uint8 [n, 32, 32, 3], found uint8 [5, 32, 32, 1]; run: dvc repro"
    )
    (folder / "peers/params.yaml").write_text("# nothing else\n")
    assert "models, seeds, glann_curve, foreign, vae," in fails_in_one_line(
        glann_at_once("peers", "10", cwd=folder)
    )
    (folder / "peers/params.yaml").write_text("gan: {imags: 3}\n")
    assert "gan.imags: unknown key; did you mean gan.images" in fails_in_one_line(
        glann_at_once("peers", "10", cwd=folder)
    )
