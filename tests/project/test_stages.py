"""What DVC records is what was done: changes under a run, DVC's death, damaged files, experiments."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from preparing import fill
from ruamel.yaml import YAML
from tiny_pipeline import TINY, dvc, repro

from benchmarks.clone import change, clone_to, output_digests
from benchmarks.clone import dvc as start_dvc
from glann.runtime.files import STAGES, all_or_none
from stages.frame.dvc import Place
from stages.frame.running import Stage, _differences

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
    assert repro(finished) == []


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
            with suppress(psutil.NoSuchProcess):  # a child of DVC may end between the two calls
                if process.cmdline()[1:3] == ["-m", f"stages.{name}"]:
                    found.append(process)
        return bool(found)

    wait_for(begun)
    return found[0]


def hear_signals() -> None:
    """Run in a new process: tests in the background or under nohup would pass on that signals are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """A test that fails leaves no process for which pytest would wait."""
    try:
        yield
    finally:
        process.kill()


def set_epochs(project: Path) -> Callable[[], None]:
    before = (project / "params.yaml").read_text()
    change(project, {"imle": {"epochs": 7}})
    return lambda: (project / "params.yaml").write_text(before)


def edit_code(project: Path) -> Callable[[], None]:
    before = (project / "glann/networks/mappings/network.py").read_text()
    (project / "glann/networks/mappings/network.py").write_text(before + "\n# edited\n")
    return lambda: (project / "glann/networks/mappings/network.py").write_text(before)


def touch_input(project: Path) -> Callable[[], None]:
    path = project / "data/glo/latents.npy"
    status = path.stat()
    os.utime(path, (0, 0))
    return lambda: os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("edit", "named", "epochs"),  # another number each: DVC would restore what it has seen
    [
        (set_epochs, "imle.epochs", 501),
        (edit_code, "glann/networks/mappings/network.py", 502),
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
    assert "imle: goes on from its checkpoint, with 100 % done" in again.stderr or "imle:" not in again.stderr


def test_what_a_stage_does_not_use_may_change_while_it_runs(project: Path):
    change(project, {"imle": {"epochs": 500}})
    code = (project / "glann/evaluate/evaluation.py").read_text()
    with start_dvc(project, "repro", "imle") as started:
        wait_for(lambda: [*(project / ".checkpoints").glob("imle-*")])
        change(project, {"sample": {"count": 6}, "compute": {"checkpoint_minutes": 5}})
        (project / "glann/evaluate/evaluation.py").write_text(code + "\n# edited\n")
        (project / "glann/imle/.#fit.py").symlink_to("an editor's lock, which leads nowhere")
        _, said = started.communicate()
    (project / "glann/evaluate/evaluation.py").write_text(code)
    (project / "glann/imle/.#fit.py").unlink()
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
    process.wait(60)  # it asks itself to stop within half a second, and ends itself after 20 more
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


def test_a_linked_folder_of_outputs_is_refused_before_the_work(project: Path, tmp_path: Path):
    (project / "data/glo").rename(tmp_path / "glo")
    (project / "data/glo").symlink_to(tmp_path / "glo")
    try:
        result = dvc(project, "repro", "--force", "--single-item", "glo")
    finally:
        (project / "data/glo").unlink()
        (tmp_path / "glo").rename(project / "data/glo")
    assert f"glann: data/glo is linked to {tmp_path / 'glo'}, and DVC accepts no outputs" in result.stderr
    assert not [*(project / ".checkpoints").glob("glo-*")]


def damage(path: Path) -> None:
    """Flip one bit near the end of a file, as a disk does: its size, time and mode stay."""
    status = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cached(project: Path, output: str) -> Path:
    digest = output_digests(project)[output]
    return project / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


@pytest.mark.parametrize(
    ("output", "reader"),
    [
        ("data/prepare/images.npy", "glo"),
        ("data/glo/latents.npy", "imle"),
        ("data/imle/generator.safetensors", "sample"),
    ],
)
def test_a_damaged_object_in_dvcs_cache_is_noticed_and_the_command_said_heals_it(
    output: str, reader: str, project: Path
):
    before = output_digests(project)
    damage(cached(project, output))
    (project / output).unlink()
    assert dvc(project, "checkout", output).returncode == 0  # DVC restores what it has
    result = dvc(project, "repro", "--force", "--single-item", reader)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("glann:")]
    assert result.returncode != 0 and line.startswith(f"glann: {output}: damaged: "), line
    command = line.rsplit("run: ", 1)[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, cwd=project, check=True, env=os.environ | {"PATH": path})
    assert output_digests(project) == before
    (project / output).unlink()
    assert dvc(project, "checkout", output).returncode == 0
    assert repro(project, "--force", "--single-item", reader) == [reader]


def test_a_file_that_is_damaged_but_not_in_the_cache_is_taken_from_there(project: Path):
    output = project / "data/imle/generator.safetensors"
    before = output.read_bytes()
    assert dvc(project, "unprotect", "data/imle/generator.safetensors").returncode == 0  # a file of its own
    damage(output)
    result = dvc(project, "repro", "--force", "--single-item", "sample")
    assert (
        "DVC's cache has an undamaged copy; run: rm data/imle/generator.safetensors && dvc checkout"
        in result.stderr
    )
    output.unlink()
    dvc(project, "checkout", "data/imle/generator.safetensors")
    assert output.read_bytes() == before


def run_stage(project: Path, name: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=project,
        text=True,
        check=False,
        env=environment,
        **options,
    )


def test_what_cannot_be_printed_fails_no_stage(project: Path):
    reading, closed = os.pipe()
    os.close(reading)
    (project / "data/evaluate/metrics.json").unlink()
    with Path("/dev/full").open("w") as full:
        assert run_stage(project, "evaluate", stdout=full, stderr=closed).returncode == 0
    os.close(closed)
    assert (project / "data/evaluate/metrics.json").is_file()
    latin = run_stage(
        project, "evaluate", env={"PYTHONIOENCODING": "latin-1"}, capture_output=True, encoding="latin-1"
    )
    assert latin.returncode == 0 and "Fréchet ?" in latin.stdout  # an arrow is none of its letters


def test_metrics_that_git_does_not_have_yet_come_back_after_a_failed_evaluation(project: Path):
    kept = (project / "data/evaluate/metrics.json").read_text()
    code = (project / "glann/evaluate/metrics.py").read_text()
    (project / "glann/evaluate/metrics.py").write_text("raise RuntimeError('edited')\n")
    failed = dvc(project, "repro", "evaluate")
    assert failed.returncode != 0 and "failed to reproduce 'evaluate'" in failed.stderr
    assert not (project / "data/evaluate/metrics.json").exists()  # DVC removed them before the stage began
    (project / "glann/evaluate/metrics.py").write_text(code)
    assert repro(project) == []
    assert (project / "data/evaluate/metrics.json").read_text() == kept


@pytest.mark.parametrize("name", ["imle", "sample"])
def test_a_terminal_that_closes_stops_a_stage_in_order(name: str, project: Path):
    change(project, {name: LONG[name], "compute": {"checkpoint_minutes": 60}})
    command = [sys.executable, "-m", f"stages.{name}"]
    started = subprocess.Popen(command, cwd=project, preexec_fn=hear_signals)  # noqa: PLW1509
    with started as process, ended(process):
        wait_for(lambda: [*(project / "data" / name).glob(".unfinished-*")] or name == "imle")
        time.sleep(6)  # imle has begun to train
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 128 + signal.SIGHUP
    assert not [*(project / "data" / name).glob(".unfinished-*")]
    assert len([*(project / ".checkpoints").glob("imle-*")]) == (name == "imle")


@pytest.mark.parametrize("module", ["torch", "pydantic"])
def test_ctrl_c_during_imports_is_one_line(module: str, project: Path, tmp_path: Path):
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    stopped = run_stage(project, "sample", env=environment, capture_output=True, preexec_fn=hear_signals)
    assert (stopped.returncode, stopped.stderr) == (130, "glann: interrupted\n")
    command = [sys.executable, "-m", "glann", "sample", "--out", str(tmp_path / "a.png")]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{project}"}
    stopped = subprocess.run(
        command,
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        preexec_fn=hear_signals,
    )
    assert (stopped.returncode, stopped.stderr) == (130, "glann: interrupted\n")


def test_experiments_in_temporary_workspaces_find_pictures_and_keep_checkpoints(project: Path):
    fill(project / "data/raw/pictures", 60)
    change(project, {"prepare": {"source": "folder", "path": "data/raw/pictures", "count": None}})
    try:
        result = dvc(project, "exp", "run", "--temp", "-S", "imle.epochs=3", "imle")
        assert result.returncode == 0, result.stderr
        change(project, {"imle": LONG["imle"]})
        with start_dvc(project, "exp", "run", "--temp", "imle") as started:
            wait_for(lambda: [*(project / ".checkpoints").glob("imle-*")])
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        (kept,) = (project / ".checkpoints").glob("imle-*")
        shown = subprocess.run(
            [sys.executable, "-m", "glann", "checkpoints"],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert kept.name in shown.stdout
    finally:
        shutil.rmtree(project / "data/raw/pictures")


def test_an_edit_after_the_results_have_appeared_withdraws_them(project: Path):
    code = (
        "from stages.frame import stage\n"
        "with stage('imle') as this:\n"
        "    with this.outputs() as folder:\n"
        "        (folder / 'losses.json').write_text('[]')\n"
        "    text = open('params.yaml').read()\n"
        "    open('params.yaml', 'w').write(text.replace('noise_dim: 4', 'noise_dim: 5'))\n"
    )
    environment = os.environ | {"DVC_STAGE": "imle"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1 and "imle.noise_dim changed while it ran" in result.stderr
    assert [path.name for path in (project / "data/imle").iterdir()] == [".gitignore"]


@pytest.mark.parametrize(
    "params",
    [["seed", "imle.epochs"], [{"params.yaml": ["seed", "imle"]}], ["imle", {"other.yaml": None}]],
    ids=str,
)
def test_whatever_way_dvc_yaml_names_settings_they_are_compared(
    params: list[Any], project: Path, monkeypatch: pytest.MonkeyPatch
):
    pipeline = YAML(typ="safe").load((project / "dvc.yaml").read_text())
    pipeline["stages"]["imle"]["params"] = params
    pipeline["stages"]["imle"]["deps"].append({"data/prepare/images.npy": {}})
    before = (project / "dvc.yaml").read_text()
    monkeypatch.chdir(project)
    try:
        Path("other.yaml").touch()  # DVC refuses a file that does not exist
        with Path("dvc.yaml").open("w") as file:
            YAML(typ="safe").dump(pipeline, file)
        noted = Stage(Place("imle", Path("data/imle")))._noted()
        change(project, {"imle": {"epochs": 9}})
        assert _differences(noted, Stage(Place("imle", Path("data/imle")))._noted()) == ["imle.epochs"]
        assert "data/prepare/images.npy" in noted
    finally:
        Path("dvc.yaml").write_text(before)
        Path("other.yaml").unlink()


def test_settings_of_another_pipeline_are_compared_by_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Those of a stage of a matrix, whose dvc.yaml has placeholders for its item."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("glo: {epochs: 3}\n")
    Path("more").mkdir()
    train = {
        "wdir": "..",
        "params": [{"params.yaml": ["glo.epochs"]}, {"more/params.yaml": ["${item.model}"]}],
        "deps": ["data/a/${item.model}.npy"],
    }
    with Path("more/dvc.yaml").open("w") as file:
        YAML(typ="safe").dump({"stages": {"train": train}}, file)
    place = Place("train", Path("data/gan"), "peers", Path("more/dvc.yaml"), {"model": "gan"})

    def noted(gan: int, vae: int) -> dict[str, Any]:
        Path("more/params.yaml").write_text(f"gan: {{lr: {gan}}}\nvae: {{lr: {vae}}}\n")
        return Stage(place)._noted()

    before = noted(1, 1)
    assert before == {"glo.epochs": 3, "more/params.yaml: gan": {"lr": 1}}
    assert _differences(before, noted(1, 2)) == []
    assert _differences(before, noted(2, 1)) == ["more/params.yaml: gan.lr"]
    Path("data/a").mkdir(parents=True)
    Path("data/a/gan.npy").touch()
    assert "data/a/gan.npy" in noted(1, 1)


def test_another_runs_unfinished_results_are_left_alone(tmp_path: Path):
    with all_or_none(tmp_path) as first:
        with all_or_none(tmp_path) as second:
            (second / "a").write_text("second")
        (first / "a").write_text("first")
    assert (tmp_path / "a").read_text() == "first"
    left = tmp_path / ".unfinished-999999999-0123abcd"
    left.mkdir()
    with all_or_none(tmp_path):
        assert not left.exists()
