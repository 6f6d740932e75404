"""A conditional model, from labels to samples of a class, by the commands of the docs."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tiny_pipeline import TINY, dvc, repro

from benchmarks.clone import change, clone_to
from glann.sample.generator import Generator

CONDITIONAL = TINY | {
    "prepare": TINY["prepare"]
    | {"source": "npy", "path": "in.npy", "labels": "labels.npy", "channels": 1, "repeats": "keep"},
    "imle": TINY["imle"] | {"conditional": True},
    "sample": TINY["sample"] | {"count": 6},
}
DOCUMENTED = (
    ("docs/sample.md", "glann sample --class 7 --count 100 --out sevens.png"),
    ("docs/sample.md", "glann walk --class 7 --seeds 1,5,9 --out sevens.webp"),
    ("docs/using.md", "glann direction --class 7 --out seven.safetensors"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose digits are a bar at the left (7) or at the right (3)."""
    folder = clone_to(tmp_path_factory.mktemp("project"), CONDITIONAL)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 40, (80, 16, 16), np.uint8), np.arange(80) % 2 * 4 + 3
    images[labels == 3, :, 9:13] = 255
    images[labels == 7, :, 3:7] = 255
    np.save(folder / "in.npy", images)
    np.save(folder / "labels.npy", labels)
    repro(folder)
    return folder


def test_every_stage_knows_the_classes(project: Path):
    classes = json.loads((project / "data/prepare/classes.json").read_text())
    assert classes["names"] == ["3", "7"] and len(classes["images"]) == 48
    generator = Generator.load(project / "data/imle/generator.safetensors")
    assert generator.classes == ["3", "7"]
    assert len(list((project / "data/sample/images").iterdir())) == 6
    figures = json.loads((project / "data/evaluate/metrics.json").read_text())["classes"]
    assert figures["3"]["images"] + figures["7"]["images"] == 48
    assert figures["7"]["accuracy_holdout"] == 1  # a bar at the left is easy to recognise
    assert "<h2>Classes</h2>" in (project / "data/evaluate/report.html").read_text()


@pytest.mark.parametrize(("page", "command"), DOCUMENTED)
def test_the_documented_commands_run(project: Path, page: str, command: str):
    assert command in (ROOT / page).read_text()
    arguments = shlex.split(command)
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (project / arguments[arguments.index("--out") + 1]).is_file()
    if "direction" in command:
        assert "7: " in result.stderr and "told apart in" in result.stderr


def test_changed_labels_are_noticed_and_missing_ones_said_at_once(project: Path):
    labels = np.load(project / "labels.npy")
    assert repro(project) == []
    np.save(project / "labels.npy", labels[::-1].copy())
    assert repro(project) == ["prepare", "imle", "sample", "evaluate"]  # latents stay
    change(project, {"prepare": {"labels": None}, "glo": {"epochs": 3}})
    try:
        result = dvc(project, "repro")
    finally:
        change(project, {"prepare": {"labels": "labels.npy"}, "glo": {"epochs": 2}})
    assert result.returncode != 0
    assert (
        "imle.conditional: the images have no classes; name a file of labels in prepare.labels"
        in result.stderr
    )
    assert "Running stage 'glo'" in result.stdout and "Running stage 'imle'" not in result.stdout
