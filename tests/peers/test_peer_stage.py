"""Stages of the rivals, as programs."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fails_in_one_line, glann_at_once, stage_at_once
from conftest import ROOT
from ruamel.yaml import YAML
from small_peers import SMALL
from training_project import project, start, wait_for

from glann.errors import DamagedFileError
from glann.networks.generator import load_generator
from glann.networks.mappings.network import MappingNetwork
from glann.peers.judges import JudgeNetwork
from glann.peers.settings import Peers
from glann.presets import commented_yaml
from glann.runtime.files import save_json
from glann.runtime.settings import Compute
from glann.runtime.tensors import load_tensors
from glann.sample.generator import Generator
from stages.frame.dvc import healing
from stages.peers.outcome import lasting

FILES = [
    "generator.safetensors",
    "judge.safetensors",
    "losses.json",
    "result.json",
    "snapshots/0.0625.safetensors",
    "snapshots/0.125.safetensors",
    "snapshots/0.25.safetensors",
    "snapshots/0.5.safetensors",
]
ON_CPU = Compute(device="cpu", precision="float32", threads=1)


def with_peers(folder: Path, name: str, keys: dict | None = None) -> Path:
    """Write peers/params.yaml into a project: a small rival that sees 80 images four times."""
    peers = Peers.model_validate({name: SMALL[name] | {"batch_size": 16, "images": 320} | (keys or {})})
    (folder / "peers").mkdir(exist_ok=True)
    (folder / "peers/params.yaml").write_text(commented_yaml(peers))
    return folder


def train(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    return run(folder, "peers.train", *arguments)


def run(folder: Path, name: str, *arguments: str) -> tuple[int, list[str]]:
    """Run a stage; return its exit status and what it said, without the progress."""
    result = stage_at_once(folder, name, *arguments)
    return result.returncode, lines(result.stderr)


def run_in_processes(folder: Path, name: str, *arguments: str) -> tuple[int, list[str]]:
    """Run a stage that starts others like itself, as a user runs it."""
    process = start(folder, f"stages.{name}", *arguments)
    _, said = process.communicate(timeout=120)
    return process.returncode, lines(said)


def lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if not re.match(r"\w+: \d+ images in ", line)]


def digests(folder: Path, trained: str) -> dict[str, str]:
    made = folder / "data/peers/trained" / trained
    files = sorted(path for path in made.rglob("*") if path.is_file())
    return {str(path.relative_to(made)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_killed_stage_ends_with_the_same_bytes_and_glann_samples_from_them(
    shapes: np.ndarray, tmp_path: Path
):
    keys = {"images": 80 * 16, "seconds": 12.5}
    expected = with_peers(project(tmp_path / "expected", shapes), "gan", keys)
    assert train(expected, "gan", "3") == (0, [])
    assert [*digests(expected, "gan-3")] == FILES

    killed = with_peers(project(tmp_path / "killed", shapes, checkpoint_minutes=0), "gan", keys)
    process = start(killed, "stages.peers.train", "gan", "3")
    saved = killed / ".checkpoints"

    def half_done() -> bool:
        for found in saved.glob("gan-*.safetensors"):
            with suppress(DamagedFileError):  # it may be replaced while it is read
                return len(load_tensors(found)[1]["position"]["history"]) >= 3
        return False

    wait_for(half_done)
    process.kill()
    process.communicate()
    assert not digests(killed, "gan-3")
    status, said = train(killed, "gan", "3")
    assert status == 0 and len(said) == 1, said
    assert re.fullmatch(r"glann: gan: goes on from its checkpoint, with [1-9]\d? % done", said[0]), said
    assert digests(killed, "gan-3") == digests(expected, "gan-3")

    made = expected / "data/peers/trained/gan-3"
    assert json.loads((made / "result.json").read_text()) == {"images": 1280, "seconds": 12.5, "failed": None}
    history = json.loads((made / "losses.json").read_text())
    assert [entry["epoch"] for entry in history] == [*range(1, 17)]
    generator = Generator.load(made / "generator.safetensors", ON_CPU)
    images = generator.sample(5, seed=1)
    assert images.shape == (5, 32, 32, 3) and images.std() > 1
    assert isinstance(generator.mapping, MappingNetwork) and generator.mapping.architecture.config is None
    latents = generator.sample_latents(5)
    assert latents.norm(dim=1).tolist() == pytest.approx([1.0] * 5)  # what the decoder was trained on
    assert JudgeNetwork.load(made / "judge.safetensors").architecture.outputs == 1
    earlier = [Generator.load(path, ON_CPU).sample(5, seed=1) for path in (made / "snapshots").iterdir()]
    assert len({sample.tobytes() for sample in [images, *earlier]}) == 5

    out = tmp_path / "samples.npy"
    options = ["--count", "5", "--seed", "1", "--precision", "float32", "--device", "cpu", "--out", out]
    sampled = glann_at_once("sample", "--generator", made / "generator.safetensors", *options, cwd=expected)
    assert sampled.returncode == 0, sampled.stderr
    options += ["--truncation", "0.5"]
    line = fails_in_one_line(
        glann_at_once("sample", "--generator", made / "generator.safetensors", *options, cwd=expected)
    )
    assert "--truncation: this model has no mapping" in line
    assert np.abs(np.load(out).astype(int) - images).max() <= 1  # another number of threads


def test_a_run_that_diverges_is_a_result_too(shapes: np.ndarray, tmp_path: Path):
    folder = with_peers(project(tmp_path / "project", shapes), "vae", {"lr": 10.0})
    earlier = folder / "data/peers/trained/vae-0/generator.safetensors"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    status, said = train(folder, "vae", "0")
    assert status == 0 and len(said) == 1, said
    what = json.loads((folder / "data/peers/trained/vae-0/result.json").read_text())["failed"]
    assert what == "vae: epoch 1: the loss is not finite"
    noticed = (
        r"glann: vae: epoch 1, step \d+: the loss is (nan|inf); no checkpoint was written yet; lower vae.lr"
    )
    assert re.match(noticed, said[0])
    assert [*digests(folder, "vae-0")] == ["result.json"]


def test_of_several_processes_that_diverge_the_first_line_is_the_result(shapes: np.ndarray, tmp_path: Path):
    folder = with_peers(project(tmp_path / "project", shapes, processes=2), "vae", {"lr": 10.0})
    status, said = run_in_processes(folder, "peers.train", "vae", "0")
    assert status == 0 and len(said) == 1, said
    found = json.loads((folder / "data/peers/trained/vae-0/result.json").read_text())
    assert found == {"images": None, "failed": "vae: epoch 1: the loss is not finite"}
    assert said[0].startswith("glann: vae: epoch 1, step ")


def test_why_a_run_failed_does_not_depend_on_when_that_was_noticed():
    for noticed in (
        "gan: epoch 3, step 8: the loss is -inf",
        "gan: epoch 3: the loss is nan",
        "gan: epoch 3, step 2: gradients are so large that their squares overflow",
    ):
        assert lasting(noticed) == "gan: epoch 3: the loss is not finite"
    assert lasting("gan: epoch 3: all samples are one picture") == "gan: epoch 3: all samples are one picture"


def test_several_processes_train_glann_with_another_seed_and_classes(shapes: np.ndarray, tmp_path: Path):
    changes = {"imle": {"conditional": True, "epochs": 2}, "glo": {"epochs": 2}}
    folder = with_peers(project(tmp_path / "project", shapes, changes, processes=2), "gan")
    images = {"images": [0, 1] * 40, "holdout": []}
    save_json(folder / "data/prepare/classes.json", {"names": ["a", "b"], **images})
    assert run_in_processes(folder, "peers.glann", "1")[0] == 0
    made = folder / "data/peers/trained/glann-1"
    assert json.loads((made / "result.json").read_text()) == {"images": 160, "failed": None}
    assert Generator.load(made / "generator.safetensors", ON_CPU).sample(3, seed=1).std() > 1


@pytest.mark.parametrize("curve", [True, False])
def test_the_model_of_the_main_pipeline_is_not_trained_again(shapes: np.ndarray, tmp_path: Path, curve: bool):
    changes = {"imle": {"epochs": 2}, "glo": {"epochs": 2}}
    folder = with_peers(project(tmp_path / "project", shapes, changes), "gan")
    settings = folder / "peers/params.yaml"
    settings.write_text(settings.read_text().replace("glann_curve: true", f"glann_curve: {curve}".lower()))
    for stage in ("glo", "imle"):
        assert run(folder, stage)[0] == 0
    assert run(folder, "peers.glann", "0")[0] == 0
    made = folder / "data/peers/trained/glann-0"
    assert (made / "snapshots/0.5.safetensors").exists() == curve
    model, same = (load_generator(path / "generator.safetensors")[1] for path in (folder / "data/imle", made))
    assert all(map(torch.equal, model.state_dict().values(), same.state_dict().values()))


SHORT_TRAININGS_DIVERGE = """
import glann.glo.train as glo
from glann.errors import DivergedError
def train_glo(images, config, *others, real=glo.train_glo):
    if config.epochs == 1:
        raise DivergedError("glo: epoch 1: the loss is nan", "lower glo.lr")
    return real(images, config, *others)
glo.train_glo = train_glo
"""


def test_a_curve_without_a_point_is_no_failed_training(shapes: np.ndarray, tmp_path: Path):
    folder = with_peers(project(tmp_path, shapes, {"imle": {"epochs": 2}, "glo": {"epochs": 4}}), "gan")
    for stage in ("glo", "imle"):
        assert run(folder, stage)[0] == 0
    (folder / "sitecustomize.py").write_text(SHORT_TRAININGS_DIVERGE)
    process = start(folder, "stages.peers.glann", "0", path=f"{folder}{os.pathsep}{ROOT}")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    (line,) = (line for line in said.splitlines() if line.startswith("glann:"))
    assert line == (
        "glann: the curve of GLANN has no point at 0.25 of the training: glo: epoch 1: the loss is nan; "
        "lower glo.lr"
    )
    made = folder / "data/peers/trained/glann-0"
    assert [path.name for path in (made / "snapshots").iterdir()] == ["0.5.safetensors"]
    assert json.loads((made / "result.json").read_text())["failed"] is None


def test_after_a_change_the_command_that_is_named_runs_the_pipeline_of_rivals(
    shapes: np.ndarray, tmp_path: Path
):
    folder = with_peers(project(tmp_path, shapes), "gan")
    shutil.copy(ROOT / "peers/dvc.yaml", folder / "peers")
    code = (
        "from pathlib import Path\n"
        "from stages.frame import stage\n"
        "from stages.frame.dvc import Place\n"
        "item = {'model': 'gan', 'seed': '0'}\n"
        "with stage(Place('train', Path('made'), 'peers', Path('peers/dvc.yaml'), item)) as this:\n"
        "    with this.outputs() as folder:\n"
        "        file = Path('peers/params.yaml')\n"
        "        file.write_text(file.read_text().replace('penalty: 1.0', 'penalty: 2.0'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    again = "dvc repro peers/dvc.yaml"
    assert result.returncode == 1 and result.stderr.splitlines() == [
        "glann: gan-0: peers/params.yaml: gan.penalty changed while it ran, and DVC would record that as "
        f"used; nothing was written: run {again}, or undo the change and run {again}"
    ]


def test_wrong_arguments_are_one_line(shapes: np.ndarray, tmp_path: Path):
    folder = with_peers(project(tmp_path, shapes), "gan")
    said = "glann: peers: name a rival (vae, gan, wgan_gp, ogan, energy) and a seed, as in: gan 0"
    assert train(folder, "gan") == (1, [said])
    assert train(folder, "diffusion", "0") == (1, [said])


def test_without_settings_one_line_says_how_to_get_them(shapes: np.ndarray, tmp_path: Path):
    said = "glann: peers/params.yaml: no such file; make one with: glann params --peers > peers/params.yaml"
    assert train(project(tmp_path, shapes), "gan", "0") == (1, [said])


def test_the_content_of_foreign_pictures_is_noted(shapes: np.ndarray, tmp_path: Path):
    folder = with_peers(project(tmp_path, shapes), "gan")
    noted = folder / "data/peers/foreign/input.json"
    assert run(folder, "peers.foreign") == (0, [])
    assert json.loads(noted.read_text()) == {}  # the hold-out is inverted
    settings = folder / "peers/params.yaml"
    settings.write_text(settings.read_text().replace("foreign: null", "foreign: other.npy"))
    status, said = run(folder, "peers.foreign")
    assert status == 1 and len(said) == 1
    assert said[0].startswith("glann: peers/params.yaml: foreign: other.npy: there is no such file")
    np.save(folder / "other.npy", np.zeros((3, 8, 8)))
    status, said = run(folder, "peers.foreign")
    assert status == 1 and "other.npy: expected uint8 [n, h, w] or" in said[0]  # before the trainings
    found = set()
    for value in (7, 8, 8):
        np.save(folder / "other.npy", np.full_like(shapes, value))
        assert run(folder, "peers.foreign") == (0, [])
        found.add(noted.read_text())
    assert len(found) == 2
    # A temporary workspace of an experiment has only the files that git tracks.
    workspace = folder / ".dvc/tmp/exps/a"
    shutil.copytree(folder, workspace, ignore=shutil.ignore_patterns("data", "other.npy", ".dvc"))
    assert run(workspace, "peers.foreign") == (0, [])
    assert (workspace / "data/peers/foreign/input.json").read_text() == noted.read_text()


def test_a_key_that_dvc_needs_is_missed_before_the_training(shapes: np.ndarray, tmp_path: Path):
    folder = with_peers(project(tmp_path, shapes), "gan")
    settings = folder / "peers/params.yaml"
    written = settings.read_text()
    for key in ("models", "seeds", "refine", "gan"):
        settings.write_text(without(written, key))
        status, said = train(folder, "gan", "0")
        assert status == 1 and len(said) == 1
        assert said[0].startswith(f"glann: peers/params.yaml: {key}: missing, and DVC reads the file without")
    settings.write_text("")
    assert "models, seeds, glann_curve, foreign," in train(folder, "gan", "0")[1][0]


def without(text: str, key: str) -> str:
    """Remove a key with all that belongs to it."""
    values = YAML(typ="safe").load(text)
    del values[key]
    written = StringIO()
    YAML(typ="safe").dump(values, written)
    return written.getvalue()


def test_a_damaged_file_of_a_rival_comes_with_the_command_that_restores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    content = b"{}"
    listed = hashlib.md5(content, usedforsecurity=False).hexdigest()
    folder = "a" * 32 + ".dir"
    cached, index = (Path(".dvc/cache/files/md5", md5[:2], md5[2:]) for md5 in (listed, folder))
    for path, text in ((cached, content), (index, b'[{"md5": "%s", "relpath": "b.json"}]' % listed.encode())):
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
    Path("peers").mkdir()
    lock = {"stages": {"train@gan-0": {"outs": [{"path": "data/gan-0", "md5": folder}]}}}
    Path("peers/dvc.lock").write_text(json.dumps(lock))
    restored = "; DVC's cache has an undamaged copy; run: rm data/gan-0/b.json && dvc checkout data/gan-0"
    assert healing(Path("data/gan-0/b.json")) == restored
    assert healing(Path("data/other.json")) == ""
    cached.write_bytes(b"damaged")
    again = f"; run: rm -rf data/gan-0 {cached} && dvc repro peers/dvc.yaml"
    assert healing(Path("data/gan-0/b.json")) == again
