"""A folder in which the training stages can run, and running them there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from command_line import stage_at_once
from conftest import ROOT

from glann.params import Params
from glann.presets import params_yaml
from glann.runtime.files import save_json
from glann.runtime.npy import digest_of_rows, save_npy

SETTINGS = {
    "compute": {"device": "cpu", "precision": "float32", "threads": 1},
    "prepare": {"resolution": 32},
    "glo": {"latent_dim": 8, "decoder": {"width": 8}, "epochs": 10, "batch_size": 16},
    "imle": {"noise_dim": 4, "mapping": {"width": 16, "depth": 1}, "epochs": 10, "batch_size": 16},
}


INFOGAN = {"glo": {"decoder": {"kind": "infogan", "width": 8}}, "imle": {"mapping": {"kind": "mlp"}}}


def project(folder: Path, shapes: np.ndarray, changes: dict | None = None, **compute: int) -> Path:
    """Make a folder in which the training stages can run: images and params.yaml."""
    folder.mkdir(exist_ok=True)
    values = {name: dict(section) for name, section in SETTINGS.items()}
    values["compute"] |= compute
    for name, section in (changes or {}).items():
        values[name] = values.get(name, {}) | section
    (folder / "params.yaml").write_text(params_yaml(Params.model_validate(values)))
    images = np.pad(shapes, ((0, 0), (8, 8), (8, 8), (0, 0)))
    images = np.concatenate([images, images[:, ::-1]])[:80]
    save_npy(folder / "data/prepare/images.npy", images)
    save_json(
        folder / "data/prepare/dataset.json",
        {"fit": "crop", "background": [255, 255, 255], "sha256": {"images.npy": digest_of_rows(images)}},
    )
    save_json(folder / "data/inputs/glo_weights.json", {})
    return folder


def start(folder: Path, *command: str, path: str = str(ROOT)) -> subprocess.Popen[str]:
    found = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (path, found)))}
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, *command: str) -> None:
    process = start(folder, *command)
    assert process.wait(120) == 0, process.stderr and process.stderr.read()


def run_at_once(folder: Path, stage: str) -> None:
    result = stage_at_once(folder, stage)
    assert result.returncode == 0, result.stderr


def losses(folder: Path, stage: str) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / f"data/{stage}/losses.json").read_text())]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)
