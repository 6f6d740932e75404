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
    assert not prepared_again(project)
    (project / "pictures/gone.png").symlink_to("nowhere.png")
    assert prepared_again(project)


def test_without_its_pictures_a_clone_keeps_its_results(project: Path):
    (project / "pictures").rename(project / "elsewhere")
    result = dvc(project, "repro", "prepare")
    assert result.returncode == 0 and "Running stage 'prepare'" not in result.stdout
    assert "inputs: pictures is not there; taken to be as it was" in result.stderr
    change(project, {"prepare": {"path": "picturse"}})  # not what the results were made from
    result = dvc(project, "repro", "prepare")
    assert result.returncode != 0 and "prepare.path: picturse: No such file or directory" in result.stderr
    change(project, {"prepare": {"path": "pictures"}})
    (project / "elsewhere").rename(project / "pictures")
    assert not prepared_again(project)


def test_a_clone_that_never_had_the_pictures_records_nothing(project: Path):
    lock = (project / "dvc.lock").read_text()
    (project / "pictures").rename(project / "elsewhere")
    kept = (project / "data/inputs/pictures.json").read_text()
    (project / "data/inputs/pictures.json").unlink()
    result = dvc(project, "repro", "prepare")
    assert "failed to reproduce 'inputs'" in result.stderr and (project / "dvc.lock").read_text() == lock
    (project / "data/inputs/pictures.json").write_text(kept)
    (project / "elsewhere").rename(project / "pictures")
    assert not prepared_again(project)


def test_a_folder_that_changes_while_it_is_read_is_not_recorded(project: Path):
    """A picture that comes after `inputs` has looked: `prepare`, run by hand, notices it."""
    lock = (project / "dvc.lock").read_text()
    fill(project / "pictures/more", 1)
    result = dvc(project, "repro", "--single-item", "--force", "prepare")
    assert result.returncode != 0 and "prepare.path: pictures changed while prepare ran" in result.stderr
    assert (project / "dvc.lock").read_text() == lock
    shutil.rmtree(project / "pictures/more")
    assert not prepared_again(project)


def inputs(project: Path) -> tuple[str, str]:
    result = dvc(project, "repro", "inputs")
    return result.stderr, (project / "data/inputs/evaluate_weights.json").read_text()


def test_weights_count_only_where_they_are_used_and_are_checked_at_once(project: Path):
    (project / "weights.pth").write_bytes(b"1")
    change(project, {"glo": {"loss": {"weights": "weights.pth"}}, "evaluate": {"weights": "weights.pth"}})
    before = inputs(project)  # the loss is laplacian, the features are pixels
    (project / "weights.pth").write_bytes(b"2")
    assert inputs(project) == before and "weights" not in before[0]
    change(project, {"evaluate": {"features": "vgg"}})
    wrong, _ = inputs(project)
    assert "weights.pth: not a weights file" in wrong and "failed to reproduce 'inputs'" in wrong
    change(
        project,
        {"evaluate": {"features": "pixels", "weights": None}, "glo": {"loss": {"kind": "perceptual"}}},
    )
    wrong, _ = inputs(project)
    assert "weights.pth: not a weights file" in wrong and "failed to reproduce 'inputs'" in wrong


def test_an_earlier_mapping_is_noted_and_may_be_missing_later(project: Path):
    change(project, {"evaluate": {"features": "pixels", "weights": None}, "glo": {"loss": {"kind": "l1"}}})
    assert dvc(project, "repro", "imle").returncode == 0
    shutil.copy(project / "data/imle/generator.safetensors", project / "earlier.safetensors")
    change(project, {"imle": {"start_from": "earlier.safetensors"}})
    result = dvc(project, "repro", "imle")
    assert result.returncode == 0 and "Running stage 'imle'" in result.stdout, result.stderr
    assert "Running stage 'imle'" not in dvc(project, "repro", "imle").stdout
    (project / "earlier.safetensors").rename(project / "elsewhere.safetensors")
    result = dvc(project, "repro", "imle")
    assert result.returncode == 0 and "Running stage 'imle'" not in result.stdout
    assert "inputs: earlier.safetensors is not there; taken to be as it was" in result.stderr
    change(project, {"imle": {"start_from": "data/imle/generator.safetensors"}})
    result = dvc(project, "repro", "imle")
    assert "imle.start_from: data/imle is replaced by the run; copy it first" in result.stderr
    assert (project / "data/imle/generator.safetensors").is_file()
