import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from glann.checkpoints import Checkpoints
from glann.mapping import MappingNetwork
from glann.presets import params_yaml, preset

GLANN = Path(sys.executable).with_name("glann")


def glann(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GLANN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


def fails_in_one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0 and "Traceback" not in result.stderr and result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_is_quick_and_imports_no_torch():
    glann("--help")  # fills the file cache
    started = time.monotonic()
    assert "fit-imle" in glann("--help").stdout
    assert time.monotonic() - started < 1
    code = "import sys, glann.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_params_prints_presets_and_the_schema():
    assert glann("params", "--preset", "mnist").stdout == params_yaml(preset("mnist"))
    assert json.loads(glann("params", "--schema").stdout)["properties"]["glo"]
    line = fails_in_one_line(glann("params", "--preset", "imagenet"))
    assert line.startswith('glann: no preset "imagenet"; there are: avatars, faces64')


def test_params_are_checked(tmp_path: Path):
    (tmp_path / "params.yaml").write_text("glo: {epochs: 0}")
    line = fails_in_one_line(glann("params", "--check", tmp_path / "params.yaml"))
    assert "params.yaml: glo.epochs: should be greater than or equal to 1, found 0" in line
    assert glann("params", "--check", ROOT / "params.yaml").returncode == 0


def test_a_mapping_is_fitted_to_latents_a_user_brings(tmp_path: Path):
    np.save(tmp_path / "latents.npy", 50 + np.random.default_rng(0).normal(size=(100, 6)))
    (tmp_path / "quick.yaml").write_text("imle: {epochs: 2, noise_dim: 3}")
    result = glann(
        "fit-imle", "latents.npy", "--out", "mapping.safetensors", "--params", "quick.yaml", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    architecture = MappingNetwork.load(tmp_path / "mapping.safetensors").architecture
    assert (architecture.noise_dim, architecture.latent_dim) == (3, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--out", "a.png"], "data/imle/generator.safetensors: no such file; run dvc repro"),
        (["sample", "--out", "a.png", "--device", "tpu"], "--device"),
        (["fit-imle", "none.npy", "--out", "m.safetensors"], "none.npy: no such file"),
        (["fit-imle", "text.npy", "--out", "m.safetensors"], "text.npy: not an .npy array of numbers"),
        (
            ["fit-imle", "whole.npy", "--out", "m.safetensors"],
            "whole.npy: expected floats [n, d], found int64",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(arguments: list[str], message: str, tmp_path: Path):
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "whole.npy", np.ones((3, 3), int))
    before = set(tmp_path.iterdir())
    assert message in fails_in_one_line(glann(*arguments, cwd=tmp_path))
    assert set(tmp_path.iterdir()) == before


def test_checkpoints_are_listed_and_deleted(tmp_path: Path):
    at = {"history": [{"epoch": 1, "loss": 1.0}], "step": 3, "rows": 9, "sum": 1.0, "epochs": 5, "steps": 9}
    Checkpoints(tmp_path, "glo", "a run", minutes=0).save({}, at | {"finished": False})
    at |= {"step": 0, "rows": 0, "epochs": 1, "finished": True}
    Checkpoints(tmp_path, "imle", "a run", minutes=0).save({}, at)
    (tmp_path / "imle-0.damaged").write_bytes(b"x")
    lines = glann("checkpoints", "--folder", tmp_path).stdout.splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "epoch 2 of 5, step 3 of 9",
        "cannot be read",
        "finished",
    ]
    assert len(list(tmp_path.iterdir())) == 3
    assert glann("checkpoints", "--folder", tmp_path, "--clean").stdout.count("deleted") == 3
    assert not list(tmp_path.iterdir()) and glann("checkpoints", "--folder", tmp_path / "none").stdout == ""
