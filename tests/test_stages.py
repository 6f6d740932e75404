"""What DVC records is what was done: changes under a run, DVC's death, damaged files, experiments."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from test_pipeline import TINY, dvc, repro

from benchmarks.clone import change, clone_to
from benchmarks.clone import dvc as start_dvc
from glann.config import STAGES

LONG = {"glo": {"epochs": 100_000}, "imle": {"epochs": 100_000}, "sample": {"count": 300_000}}
LONG |= {"prepare": {"count": 300_000}, "evaluate": {"priors": ["flow"] * 2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project whose pipeline has run."""
    folder = clone_to(tmp_path_factory.mktemp("finished"), TINY)
    repro(folder)
    return folder


@pytest.fixture
def project(finished: Path) -> Iterator[Path]:
    """The finished project; settings and lock are put back afterwards, and outputs come from the cache."""
    shutil.rmtree(finished / ".checkpoints", ignore_errors=True)
    kept = {name: (finished / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    yield finished
    for name, content in kept.items():
        (finished / name).write_bytes(content)
    assert {*repro(finished)} <= {"evaluate"}  # git alone keeps its metrics, so without plots it runs again


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def stage_process(started: subprocess.Popen[str], name: str) -> psutil.Process:
    """Return the process of a stage below DVC, once it has begun."""
    found: list[psutil.Process] = []

    def begun() -> bool:
        for process in psutil.Process(started.pid).children(recursive=True):
            if process.cmdline()[1:3] == ["-m", f"stages.{name}"]:
                found.append(process)
        return bool(found)

    wait_for(begun)
    return found[0]


def set_epochs(project: Path) -> Callable[[], None]:
    before = (project / "params.yaml").read_text()
    change(project, {"imle": {"epochs": 7}})
    return lambda: (project / "params.yaml").write_text(before)


def edit_code(project: Path) -> Callable[[], None]:
    before = (project / "glann/mapping.py").read_text()
    (project / "glann/mapping.py").write_text(before + "\n# edited\n")
    return lambda: (project / "glann/mapping.py").write_text(before)


def touch_input(project: Path) -> Callable[[], None]:
    path = project / "data/glo/latents.npy"
    status = path.stat()
    os.utime(path, (0, 0))
    return lambda: os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("edit", "named", "epochs"),  # another number each: DVC would restore what it has seen
    [
        (set_epochs, "imle.epochs", 501),
        (edit_code, "glann/mapping.py", 502),
        (touch_input, "data/glo/latents.npy", 503),
    ],
    ids=["settings", "code", "input"],
)
def test_what_changes_while_a_stage_runs_is_not_recorded_as_what_it_used(
    edit: Callable[[Path], Callable[[], None]], named: str, epochs: int, project: Path
):
    change(project, {"imle": {"epochs": epochs}})
    lock = (project / "dvc.lock").read_text()
    with start_dvc(project, "repro", "imle") as started:
        wait_for(lambda: [*(project / ".checkpoints").glob("imle-*")])
        undo = edit(project)
        _, said = started.communicate()
    lines = [line for line in said.splitlines() if line.startswith("glann:")]
    assert started.returncode != 0 and len(lines) == 1 and "Traceback" not in said, said
    assert lines[0].startswith(f"glann: imle: {named} changed while it ran"), lines
    assert (project / "dvc.lock").read_text() == lock and not [*(project / "data/imle").glob("*.safetensors")]
    undo()
    again = dvc(project, "repro", "imle")
    assert again.returncode == 0
    # What was computed is not lost: the finished checkpoint is taken, and no epoch is done once more.
    assert "imle: 0 latents" in again.stderr or "imle:" not in again.stderr, again.stderr


def test_what_a_stage_does_not_use_may_change_while_it_runs(project: Path):
    change(project, {"imle": {"epochs": 500}})
    code = (project / "glann/evaluate.py").read_text()
    with start_dvc(project, "repro", "imle") as started:
        wait_for(lambda: [*(project / ".checkpoints").glob("imle-*")])
        change(project, {"sample": {"count": 6}, "compute": {"checkpoint_minutes": 5}})
        (project / "glann/evaluate.py").write_text(code + "\n# edited\n")
        (project / "glann/.#evaluate.py").symlink_to("an editor's lock, which leads nowhere")
        _, said = started.communicate()
    (project / "glann/evaluate.py").write_text(code)
    (project / "glann/.#evaluate.py").unlink()
    assert started.returncode == 0, said


@pytest.mark.parametrize(
    ("name", "when"), [("glo", "at once"), *((name, "at work") for name in STAGES)], ids=str
)
def test_a_stage_ends_with_dvc_and_writes_nothing(name: str, when: str, project: Path, tmp_path: Path):
    (tmp_path / "shell").write_text('#!/bin/sh\n/bin/sh "$@"\nexit $?\n')  # as fish does, it stays
    (tmp_path / "shell").chmod(0o755)
    change(project, {name: LONG[name], "compute": {"checkpoint_minutes": 60}})
    with start_dvc(project, "repro", name, env={"SHELL": str(tmp_path / "shell")}) as started:
        process = stage_process(started, name)
        if when == "at work":
            wait_for(lambda: any("torch" in mapped.path for mapped in process.memory_maps()))
            time.sleep(3)
        started.kill()
        started.wait()
    killed = time.monotonic()
    process.wait(30)
    assert time.monotonic() - killed < 15
    assert not [
        path
        for path in (project / "data" / name).iterdir()
        if path.name not in (".gitignore", "metrics.json")
    ]


def test_a_stage_that_begins_after_dvc_has_ended_does_nothing(project: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    locked = {str(project / "data/sample/grid.png"): {"pid": gone.pid, "cmd": "dvc repro"}}
    (project / ".dvc/tmp/rwlock").write_text(json.dumps({"write": locked, "read": {}}))
    before = {path: path.stat().st_mtime_ns for path in (project / "data/sample").rglob("*")}
    try:
        result = subprocess.run(
            [sys.executable, "-m", "stages.sample"],
            cwd=project,
            env=os.environ | {"DVC_STAGE": "sample"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        (project / ".dvc/tmp/rwlock").unlink()
    assert result.returncode == 128 + signal.SIGTERM
    assert result.stderr == "glann: sample: DVC has ended; run: dvc repro\n"
    assert {path: path.stat().st_mtime_ns for path in (project / "data/sample").rglob("*")} == before
