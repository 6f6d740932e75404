"""`dvc repro` notices changed pictures and weights. The tests build on each other, in order."""

import shutil
from pathlib import Path

import pytest
from preparing import fill
from tiny_pipeline import TINY, dvc

from benchmarks.clone import change, clone_to


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone_to(tmp_path_factory.mktemp("project"), TINY)
    fill(folder / "pictures", 30)
    change(folder, {"prepare": {"source": "folder", "path": "pictures", "count": None, "holdout": 5}})
    return folder


def prepared_again(project: Path) -> bool:
    result = dvc(project, "repro", "prepare")
    assert result.returncode == 0, result.stderr
    assert "Running stage 'inputs'" in result.stdout
    return "Running stage 'prepare'" in result.stdout


def test_prepare_runs_for_changed_pictures_and_only_for_these(project: Path):
    assert prepared_again(project)
    (project / "pictures/003.png").touch()
    assert not prepared_again(project)
    (project / "pictures/note.txt").write_text("not an image")
    assert prepared_again(project)
    (project / "pictures/note.txt").unlink()
    (project / "pictures/gone.png").symlink_to("nowhere.png")
    assert prepared_again(project)


def test_without_its_pictures_a_clone_keeps_its_results(project: Path):
    (project / "pictures").rename(project / "elsewhere")
    result = dvc(project, "repro", "prepare")
    assert result.returncode == 0 and "Running stage 'prepare'" not in result.stdout
    assert "inputs: pictures is not there; taken to be as it was" in result.stderr
    shutil.rmtree(project / "data/inputs")
    result = dvc(project, "repro", "prepare")  # nothing is known any more
    assert result.returncode != 0 and "prepare.path: pictures: No such file or directory" in result.stderr
    (project / "elsewhere").rename(project / "pictures")
    assert not prepared_again(project)


def test_weights_count_only_where_they_are_used(project: Path):
    (project / "weights.pth").write_bytes(b"1")
    change(project, {"glo": {"loss": {"weights": "weights.pth"}}, "evaluate": {"weights": "weights.pth"}})
    dvc(project, "repro", "inputs")
    before = [(project / f"data/inputs/{name}_weights.json").read_text() for name in ("glo", "evaluate")]
    (project / "weights.pth").write_bytes(b"2")
    dvc(project, "repro", "inputs")
    after = [(project / f"data/inputs/{name}_weights.json").read_text() for name in ("glo", "evaluate")]
    assert before[0] == after[0] and before[1] != after[1]  # the loss is laplacian
