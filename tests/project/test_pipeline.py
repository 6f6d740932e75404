"""Real `dvc repro` in a clone, with tiny settings. The tests build on each other, in order."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from tiny_pipeline import TINY, dvc, repro

from benchmarks.clone import change, clone_to, output_digests
from glann.evaluate.comparison import COLUMNS
from glann.runtime.files import STAGES


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone_to(tmp_path_factory.mktemp("project"), TINY)


def test_dvc_repro_runs_every_stage_and_makes_every_artifact(project: Path):
    assert repro(project) == list(STAGES)
    images = np.load(project / "data/prepare/images.npy")
    assert images.shape == (48, 16, 16, 3) and images.dtype == np.uint8
    latents = np.load(project / "data/glo/latents.npy")
    assert latents.shape == (48, 8) and np.allclose(np.linalg.norm(latents, axis=1), 1, atol=1e-5)
    assert len(list((project / "data/sample/images").iterdir())) == 5
    for name in (
        "sample/grid",
        "sample/interpolation",
        "evaluate/plots/nearest",
        "evaluate/plots/comparison",
        "evaluate/plots/weakest",
    ):
        assert Image.open(project / f"data/{name}.png").size[0] > 16
    metrics = json.loads((project / "data/evaluate/metrics.json").read_text())
    rows = ("train", "reconstructions", "glann", "glo_gaussian", "glo_mixture")
    assert metrics["features"] == "pixels"
    assert all(set(metrics[row]) == set(COLUMNS) for row in rows)
    novelty = json.loads((project / "data/evaluate/plots/novelty.json").read_text())
    assert [point["percent"] for point in novelty] == [*range(101)]
    assert 0 < novelty[50]["holdout"] < novelty[100]["holdout"] and novelty[50]["glann"] > 0
    # Real images are nearer to real images than those of a model trained for a second.
    assert metrics["train"]["frechet"] < metrics["reconstructions"]["frechet"]
    assert not list((project / ".checkpoints").glob("*"))


def test_a_second_time_nothing_runs_but_the_look_at_the_inputs(project: Path):
    result = dvc(project, "repro")
    assert result.stdout.count("Running stage") == 1 and "Running stage 'inputs'" in result.stdout
    assert result.stdout.count("didn't change, skipping") == len(STAGES)


def test_only_what_depends_on_a_changed_key_runs_and_changing_back_restores(project: Path):
    before = output_digests(project)
    change(project, {"imle": {"epochs": 3}})
    assert repro(project) == ["imle", "sample", "evaluate"]
    assert (
        output_digests(project)["data/imle/generator.safetensors"]
        != before["data/imle/generator.safetensors"]
    )
    change(project, {"imle": {"epochs": 2}})
    assert repro(project) == [] and output_digests(project) == before
    change(project, {"sample": {"count": 4}})
    assert repro(project) == ["sample"]
    assert len(list((project / "data/sample/images").iterdir())) == 4
    change(project, {"sample": {"count": 5}, "compute": {"checkpoint_minutes": 5}})
    assert repro(project) == [] and output_digests(project) == before


def test_forced_and_in_another_clone_every_byte_is_the_same(project: Path, tmp_path: Path):
    before, lock = output_digests(project), YAML(typ="safe").load(project / "dvc.lock")
    assert repro(project, "--force") == list(STAGES)
    assert output_digests(project) == before
    other = clone_to(tmp_path, TINY)
    repro(other)
    # DVC runs stages that do not need each other in any order, and records them in that order.
    assert YAML(typ="safe").load(other / "dvc.lock") == lock


def test_dvcs_cache_takes_no_space_of_its_own_and_nothing_writes_into_it(project: Path):
    """All that the tests above ran has not changed a file under the name of its digest."""
    if (images := project / "data/prepare/images.npy").stat().st_nlink == 1:
        pytest.skip("files of this file system share their blocks in another way")
    cached = [path for path in (project / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert images.stat().st_ino in {path.stat().st_ino for path in cached}
    for path in cached:
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        assert path.parent.name + path.stem == digest


def test_metrics_and_plots_are_shown(project: Path):
    shown = json.loads(dvc(project, "metrics", "show", "--json").stdout)
    assert "glann" in shown[""]["data"]["data/evaluate/metrics.json"]["data"]
    result = dvc(project, "plots", "show")
    page = (project / "dvc_plots" / "index.html").read_text()
    assert result.returncode == 0 and "GLO loss" in page and page.count("<img") >= 5


WRONG = [
    ({"prepare": {"source": "folder", "path": "data/nowhere"}}, "prepare.path: data/nowhere: No such file"),
    ({"prepare": {"source": "folder"}}, "prepare.path: no files in data/raw"),
    ({"prepare": {"resolution": 24}}, "prepare.resolution: 24 px, but residual decoders make"),
    ({"glo": {"epoch": 3}}, "glo.epoch: unknown key"),
    ({"glo": {"loss": {"kind": "perceptual", "weights": "no.pth"}}}, "no.pth: no such file"),
    ({"imle": {"index": "Flatter"}}, "imle.index: 'Flatter' is not one of the known index strings"),
    ({"imle": {"start_from": "no.safetensors"}}, "no.safetensors: no such file"),
    ({"evaluate": {"features": "vgg", "weights": "no.safetensors"}}, "no.safetensors: no such file"),
]


@pytest.mark.parametrize(
    ("values", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_wrong_params_stop_dvc_repro_with_one_line(values: dict, message: str, project: Path):
    good = (project / "params.yaml").read_text()
    try:
        change(project, values)
        result = dvc(project, "repro")
        said = [
            line for line in result.stderr.splitlines() if not line.startswith("ERROR: failed to reproduce")
        ]
        stage = next(iter(values))
        assert result.returncode != 0 and "Traceback" not in result.stderr
        assert sum(message in line for line in result.stderr.splitlines()) == 1, result.stderr
        assert len([line for line in said if line.strip()]) <= 1, result.stderr
        assert not [path for path in (project / "data" / stage).rglob(".*") if path.name != ".gitignore"]
    finally:
        (project / "params.yaml").write_text(good)


def test_after_that_all_that_was_there_comes_back_from_the_cache(project: Path):
    assert repro(project) == []
