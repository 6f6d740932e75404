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

from glann.errors import GlannError
from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.imle.settings import Imle
from glann.runtime.checkpoint_files import remove_finished, stored
from glann.runtime.code import AT_START, PACKAGE
from glann.runtime.compute import Execution, execution
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.signals import Stopped, stop_signals
from glann.runtime.tensors import load_tensors, save_tensors
from glann.training.checkpoints import Checkpoints

GLO = {"decoder": {"width": 8}, "latent_dim": 8, "epochs": 3, "batch_size": 16}  # 3 steps an epoch
IMLE = {"noise_dim": 4, "mapping": {"width": 16, "depth": 1}, "epochs": 4, "refresh": 2, "batch_size": 16}

Train = Callable[[Checkpoints | None], tuple[Tensor, list[dict[str, float]]]]


class Killed(Exception):  # noqa: N818
    pass


class KilledAfter(Checkpoints):
    """Ends the run behind the given checkpoint, with whatever is in memory lost."""

    saves = 0
    limit = 0

    def save(self, tensors: dict[str, Tensor], position: dict) -> None:
        super().save(tensors, position)
        self.saves += 1
        if self.saves == self.limit:
            raise Killed


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


@pytest.fixture(params=["laplacian", "crops", "batch norm", "imle", "imle with batch norm"])
def train(request: pytest.FixtureRequest, shapes: np.ndarray, cpu: Execution, random_vgg: str) -> Train:
    images = np.pad(shapes, ((0, 0), (8, 8), (8, 8), (0, 0)))
    changes = {
        "crops": {
            "loss": {
                "kind": "perceptual",
                "levels": 1,
                "crop": 16,
                "coarse": 0.5,
                "texture": 0.5,
                "weights": random_vgg,
            }
        },
        "batch norm": {"decoder": {"kind": "infogan", "width": 8}},
        "imle with batch norm": {"mapping": {"kind": "mlp", "width": 16, "depth": 1}},
    }.get(request.param, {})

    def glo(checkpoints: Checkpoints | None) -> tuple[Tensor, list[dict[str, float]]]:
        result = train_glo(images, Glo(**(GLO | changes)), 0, cpu, checkpoints)
        return torch.cat([result.latents.flatten().double(), weights(result.decoder)]), result.history

    def imle(checkpoints: Checkpoints | None) -> tuple[Tensor, list[dict[str, float]]]:
        latents = torch.randn(48, 6, generator=stream(0, "latents"))
        result = fit_imle(latents, Imle(**(IMLE | changes)), 0, cpu, checkpoints)
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


@pytest.mark.parametrize("stage", ["glo", "imle"])
def test_a_run_in_bfloat16_killed_anywhere_ends_with_the_same_bytes(
    stage: str, shapes: np.ndarray, tmp_path: Path
):
    half = execution(Compute(device="cpu", precision="bfloat16", threads=1))
    latents = torch.randn(48, 6, generator=stream(0, "latents"))

    def train(checkpoints: Checkpoints | None) -> Tensor:
        if stage == "glo":
            result = train_glo(shapes, Glo(**GLO), 0, half, checkpoints)
            return torch.cat([result.latents.flatten().double(), weights(result.decoder)])
        return weights(fit_imle(latents, Imle(**IMLE), 0, half, checkpoints).mapping)

    expected = train(None)
    for at in (2, 4, 9):  # within the first and the second epoch, and at the end
        killed = KilledAfter(tmp_path / str(at), "test", "a run", minutes=0)
        killed.limit = at
        with pytest.raises(Killed):
            train(killed)
        assert torch.equal(train(Checkpoints(tmp_path / str(at), "test", "a run", minutes=0)), expected), at


def test_a_checkpoint_belongs_to_the_code_of_its_stage_and_what_that_stands_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def name(stage: str, edited: str = "") -> str:
        with monkeypatch.context() as patch:
            if edited:
                assert (PACKAGE / edited) in AT_START
                patch.setitem(AT_START, PACKAGE / edited, "other bytes")
            return Checkpoints(tmp_path, stage, "a run", minutes=0).name

    for edited, stages in {
        "glo/losses.py": {"glo"},
        "imle/fit.py": {"imle"},
        "evaluate/metrics.py": set(),
        "cli/app.py": set(),
        "training/course.py": {"glo", "imle"},
        "networks/layers.py": {"glo", "imle"},
    }.items():
        assert {stage for stage in ("glo", "imle") if name(stage, edited) != name(stage)} == stages, edited
    assert name("codes", "imle/fit.py") != name("codes")  # a name of one's own may stand for any training


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_finishes_the_step_and_saves(number: signal.Signals, train: Train, tmp_path: Path):
    class Signalled(Checkpoints):
        def due(self, step: int) -> bool:
            if step == 2:
                os.kill(os.getpid(), number)
            return super().due(step)

    expected, history = train(None)
    with (
        pytest.raises(Stopped, match=r"stopped, checkpoint in .*; run the same command to") as stopped,
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
    with pytest.raises(Stopped, match="run the same command to continue from here"), stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)


def damage(kind: str, path: Path) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        del content[-4:]
    elif kind == "empty":
        content.clear()
    else:
        content[-1 if kind == "flipped" else content.index(b"position")] ^= 1
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


def without(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]


ALTERATIONS: dict[str, Callable[[dict[str, Tensor], dict], object]] = {
    "an epoch taken out of the history": lambda tensors, at: at["history"].pop(0),
    "an epoch added to the history": lambda tensors, at: at["history"].append({"epoch": 2, "loss": 1.0}),
    "a history without losses": lambda tensors, at: at["history"][0].pop("loss"),
    "a loss that is text": lambda tensors, at: at["history"][0].update(loss="1"),
    "a loss that is infinite": lambda tensors, at: at["history"][0].update(loss=float("inf")),
    "no history": lambda tensors, at: at.pop("history"),
    "an earlier step": lambda tensors, at: at.update(step=1, rows=16),
    "a step that is negative": lambda tensors, at: at.update(step=-1),
    "a step beyond the epoch": lambda tensors, at: at.update(step=4, rows=48),
    "a step without rows": lambda tensors, at: at.update(rows=0),
    "rows of another step": lambda tensors, at: at.update(rows=48),
    "a sum that is NaN": lambda tensors, at: at.update(sum=float("nan")),
    "more epochs": lambda tensors, at: at.update(epochs=9),
    "an end that was not reached": lambda tensors, at: at.update(finished=True),
    "a tensor less": lambda tensors, at: without(tensors, max(tensors)),
    "an optimiser less": lambda tensors, at: [
        without(tensors, name) for name in [*tensors] if name.startswith("optimizer.")
    ],
    "a tensor of another shape": lambda tensors, at: tensors.update(
        {name: value[..., None] for name, value in tensors.items() if name.endswith("exp_avg")}
    ),
    "a tensor of another type": lambda tensors, at: tensors.update(
        {name: value.long() for name, value in tensors.items() if name.startswith("average.module")}
    ),
    "weights that are NaN": lambda tensors, at: [
        value.fill_(torch.nan) for name, value in tensors.items() if name.endswith("weight")
    ],
    "variances that are negative": lambda tensors, at: [
        value.fill_(-1) for name, value in tensors.items() if name.endswith("exp_avg_sq")
    ],
    "an optimiser of another step": lambda tensors, at: tensors["optimizer.0.step"].fill_(3),
    "an average of another step": lambda tensors, at: tensors["average.n_averaged"].fill_(3),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_checkpoint_with_a_right_digest_is_set_aside(
    alteration: str, shapes: np.ndarray, cpu: Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def glo(checkpoints: Checkpoints | None) -> tuple[Tensor, list[dict[str, float]]]:
        result = train_glo(shapes, Glo(**GLO), 0, cpu, checkpoints)
        return torch.cat([result.latents.flatten(), weights(result.decoder)]), result.history

    def imle(checkpoints: Checkpoints | None) -> tuple[Tensor, list[dict[str, float]]]:
        latents = torch.randn(48, 6, generator=stream(0, "latents"))
        result = fit_imle(latents, Imle(**IMLE), 0, cpu, checkpoints)
        return weights(result.mapping), result.history

    for stage in (glo, imle):
        killed = KilledAfter(tmp_path, stage.__name__, "a run", minutes=0)
        killed.limit = 5  # of three steps an epoch: the second step of the second
        with pytest.raises(Killed):
            stage(killed)
        tensors, config = load_tensors(killed.path)
        ALTERATIONS[alteration](tensors, config["position"])
        save_tensors(killed.path, tensors, config)
        checkpoints = Checkpoints(tmp_path, stage.__name__, "a run", minutes=60)
        found, history = stage(checkpoints)
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("glann:")]
        assert len(said) == 1 and "set aside as" in said[0] and "holds no state of this run" in said[0]
        expected = stage(None)
        assert torch.equal(found, expected[0]) and history == expected[1]
        assert checkpoints.path.with_suffix(".damaged").is_file()


def test_what_a_killed_run_left_half_written_and_other_things_among_checkpoints_do_no_harm(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path
):
    checkpoints = Checkpoints(tmp_path, "glo", "one", minutes=60)
    (tmp_path / "a folder.safetensors").mkdir()
    left = tmp_path / f".{checkpoints.name}-0123abcd.safetensors"
    left.write_bytes(b"half")
    other = tmp_path / ".glo-of-another-run-0123abcd.safetensors"
    other.write_bytes(b"half")
    assert not any(path.name.startswith("a folder") for path in (kept.path for kept in stored(tmp_path)))
    train_glo(shapes, Glo(**GLO), 0, cpu, checkpoints)
    assert not left.exists() and other.exists() and checkpoints.path.is_file()
    checkpoints.path.unlink()
    checkpoints.path.mkdir()  # there is no room for a checkpoint: training continues without
    assert len(train_glo(shapes, Glo(**GLO), 0, cpu, checkpoints).history) == 3


def test_finished_checkpoints_of_runs_in_other_folders_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    at = {"history": [{"epoch": 1, "loss": 1.0}], "step": 0, "rows": 0, "sum": 0.0, "epochs": 1, "steps": 9}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Checkpoints(tmp_path, "glo", name, minutes=0).save({}, at | {"finished": True})
    remove_finished(tmp_path, "glo")
    assert [kept.folder for kept in stored(tmp_path)] == [str(tmp_path / "one")]


def test_a_checkpoint_of_another_run_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mine = Checkpoints(tmp_path, "glo", {"epochs": 3}, minutes=0)
    mine.save({"x": torch.ones(2)}, {"step": 1})
    other = Checkpoints(tmp_path, "glo", {"epochs": 4}, minutes=0)
    assert other.load() is None
    shutil.copy(mine.path, other.path)
    assert other.load() is None and "belongs to another run; set aside" in capsys.readouterr().err
    assert mine.load() is not None


def test_finished_checkpoints_go_when_the_next_stage_begins(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path
):
    train_glo(shapes, Glo(**GLO), 0, cpu, Checkpoints(tmp_path, "glo", "one", minutes=60))
    killed = KilledAfter(tmp_path, "glo", "two", minutes=0)
    killed.limit = 2
    with pytest.raises(Killed):
        train_glo(shapes, Glo(**GLO), 0, cpu, killed)
    assert sorted(checkpoint.state for checkpoint in stored(tmp_path)) == [
        "epoch 1 of 3, step 2 of 3",
        "finished",
    ]
    remove_finished(tmp_path, "imle")
    assert len([*stored(tmp_path)]) == 2
    remove_finished(tmp_path, "glo")
    assert [checkpoint.path for checkpoint in stored(tmp_path)] == [killed.path]


def test_training_goes_on_where_no_checkpoint_can_be_written(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("no folder")
    checkpoints = Checkpoints(tmp_path / "file", "glo", "one", minutes=0)
    result = train_glo(shapes, Glo(**GLO), 0, cpu, checkpoints)
    assert len(result.history) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "training continues without" in said[0]


def test_a_signal_is_answered_also_where_no_checkpoint_can_be_written(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path
):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(GlannError, match="stopped, no checkpoint: "), stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        train_glo(shapes, Glo(**GLO), 0, cpu, Checkpoints(tmp_path / "file", "glo", "one", minutes=60))
