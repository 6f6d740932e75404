"""A run that ends anywhere goes on there, and ends with the same bytes."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glann.checkpoints import Checkpoints, remove_finished, stored
from glann.compute import Execution
from glann.config import Glo, Imle
from glann.errors import GlannError
from glann.glo import train_glo
from glann.imle import fit_imle
from glann.stopping import Stopped, stop_signals
from glann.streams import stream

GLO = {"decoder": {"width": 8}, "latent_dim": 8, "epochs": 3, "batch_size": 16}  # 3 steps an epoch
IMLE = {"noise_dim": 4, "mapping": {"width": 16, "depth": 1}, "epochs": 4, "refresh": 2, "batch_size": 16}

Train = Callable[[Checkpoints | None], tuple[Tensor, list[dict[str, float]]]]


class Killed(Exception):  # noqa: N818
    pass


class KilledAfter(Checkpoints):
    """Ends the run behind the given checkpoint, with whatever is in memory lost."""

    saves = 0
    limit = 0

    def save(self, tensors: dict[str, Tensor], progress: dict) -> None:
        super().save(tensors, progress)
        self.saves += 1
        if self.saves == self.limit:
            raise Killed


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


@pytest.fixture(params=["laplacian", "crops", "batch norm", "imle", "imle with batch norm"])
def train(request: pytest.FixtureRequest, shapes: np.ndarray, run: Execution, random_vgg: str) -> Train:
    images = np.pad(shapes, ((0, 0), (8, 8), (8, 8), (0, 0)))
    changes = {
        "crops": {"loss": {"kind": "perceptual", "levels": 1, "crop": 16, "weights": random_vgg}},
        "batch norm": {"decoder": {"kind": "infogan", "width": 8}},
        "imle with batch norm": {"mapping": {"kind": "mlp", "width": 16, "depth": 1}},
    }.get(request.param, {})

    def glo(checkpoints: Checkpoints | None) -> tuple[Tensor, list[dict[str, float]]]:
        result = train_glo(images, Glo(**(GLO | changes)), 0, run, checkpoints)
        return torch.cat([result.latents.flatten().double(), weights(result.decoder)]), result.history

    def imle(checkpoints: Checkpoints | None) -> tuple[Tensor, list[dict[str, float]]]:
        latents = torch.randn(48, 6, generator=stream(0, "latents"))
        result = fit_imle(latents, Imle(**(IMLE | changes)), 0, run, checkpoints)
        return weights(result.mapping), result.history

    return imle if request.param.startswith("imle") else glo


def test_a_run_killed_anywhere_ends_with_the_same_bytes(train: Train, tmp_path: Path):
    expected, history = train(None)
    # In the first epoch, at ends of epochs, in later ones, and with everything done but the writing.
    for at in (1, 3, 5, 6, 9, 10):
        killed = KilledAfter(tmp_path / str(at), "test", "a run", minutes=0)
        killed.limit = at
        with pytest.raises(Killed):
            train(killed)
        found, said = train(Checkpoints(tmp_path / str(at), "test", "a run", minutes=0))
        assert torch.equal(found, expected) and said == history, at


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_finishes_the_step_and_saves(number: signal.Signals, train: Train, tmp_path: Path):
    class Signalled(Checkpoints):
        def due(self, step: int) -> bool:
            if step == 2:
                os.kill(os.getpid(), number)
            return super().due(step)

    expected, history = train(None)
    with (
        pytest.raises(Stopped, match=r"stopped, checkpoint in .*; the same command goes on") as stopped,
        stop_signals(),
    ):
        train(Signalled(tmp_path, "test", "a run", minutes=60))
    assert stopped.value.status == 128 + number
    assert [checkpoint.state for checkpoint in stored(tmp_path)] == [
        f"epoch 1 of {len(history)}, step 2 of 3"
    ]
    found, said = train(Checkpoints(tmp_path, "test", "a run", minutes=60))
    assert torch.equal(found, expected) and said == history


def test_a_signal_that_no_step_answers_keeps_the_next_stage_from_starting():
    with pytest.raises(Stopped, match="the same command goes on from here"), stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)


def damage(kind: str, path: Path) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        del content[-4:]
    elif kind == "empty":
        content.clear()
    else:
        content[-1 if kind == "flipped" else content.index(b"progress")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "flipped in the header"])
def test_a_damaged_checkpoint_is_set_aside_with_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mine = Checkpoints(tmp_path, "glo", {"epochs": 3}, minutes=0)
    mine.save({"x": torch.ones(2)}, {"step": 1})
    assert mine.load() == ({"x": pytest.approx(torch.ones(2))}, {"step": 1})
    damage(kind, mine.path)
    assert mine.load() is None and mine.path.with_suffix(".damaged").is_file()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"glann: {mine.path}: ") and "set aside as" in said[0]
    assert mine.load() is None and not capsys.readouterr().err  # it is not met twice
    assert [checkpoint.state for checkpoint in stored(tmp_path)] == ["cannot be read"]


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mine = Checkpoints(tmp_path, "glo", {"epochs": 3}, minutes=0)
    mine.save({"x": torch.ones(2)}, {"step": 1})
    other = Checkpoints(tmp_path, "glo", {"epochs": 4}, minutes=0)
    assert other.load() is None
    shutil.copy(mine.path, other.path)
    assert other.load() is None and "belongs to another run; set aside" in capsys.readouterr().err
    assert mine.load() is not None


def test_finished_checkpoints_go_when_the_next_stage_begins(
    shapes: np.ndarray, run: Execution, tmp_path: Path
):
    train_glo(shapes, Glo(**GLO), 0, run, Checkpoints(tmp_path, "glo", "one", minutes=60))
    killed = KilledAfter(tmp_path, "glo", "two", minutes=0)
    killed.limit = 2
    with pytest.raises(Killed):
        train_glo(shapes, Glo(**GLO), 0, run, killed)
    assert sorted(checkpoint.state for checkpoint in stored(tmp_path)) == [
        "epoch 1 of 3, step 2 of 3",
        "finished",
    ]
    remove_finished(tmp_path, "imle")
    assert len([*stored(tmp_path)]) == 2
    remove_finished(tmp_path, "glo")
    assert [checkpoint.path for checkpoint in stored(tmp_path)] == [killed.path]


def test_training_goes_on_where_no_checkpoint_can_be_written(
    shapes: np.ndarray, run: Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("no folder")
    checkpoints = Checkpoints(tmp_path / "file", "glo", "one", minutes=0)
    result = train_glo(shapes, Glo(**GLO), 0, run, checkpoints)
    assert len(result.history) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "training goes on without" in said[0]


def test_a_signal_is_answered_also_where_no_checkpoint_can_be_written(
    shapes: np.ndarray, run: Execution, tmp_path: Path
):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(GlannError, match="stopped, no checkpoint: "), stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        train_glo(shapes, Glo(**GLO), 0, run, Checkpoints(tmp_path / "file", "glo", "one", minutes=60))
