"""The `glann` command, run as a user runs it."""

import os
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from conftest import ROOT

from glann.__main__ import main

GLANN = Path(sys.executable).with_name("glann")
# A process that has imported what commands need, and copies itself: importing takes seconds.
PREPARED = get_context("forkserver")
PREPARED.set_forkserver_preload(["torch", "glann.cli.commands", "glann.sample.generator", "glann.preflight"])


def glann(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [GLANN, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def glann_at_once(
    *arguments: object, cwd: Path = ROOT, **environment: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that has already imported torch; for the rest like `glann`.

    A variable of the environment that is None is taken away.
    """
    return _at_once(main, [str(GLANN), *map(str, arguments)], cwd, environment)


def stage_at_once(
    folder: Path, name: str, *arguments: str, largest: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a stage likewise, with no file longer than so many bytes."""
    return _at_once(partial(_stage, f"stages.{name}", largest), [name, *arguments], folder, {})


def _stage(module: str, largest: int | None) -> None:
    if largest:
        sys.dont_write_bytecode = True  # half of it would stay
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _at_once(
    work: Callable[[], None], command: list[str], cwd: Path, environment: Mapping[str, str | None]
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]
        process = PREPARED.Process(target=_child, args=(work, command, cwd, environment, *said), daemon=True)
        process.start()
        process.join(timeout=120)
        assert process.exitcode is not None, "still running"
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in said))


def _child(
    work: Callable[[], None],
    command: list[str],
    cwd: Path,
    environment: Mapping[str, str | None],
    out: Path,
    err: Path,
) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = command
    work()


def fails_in_one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0 and "Traceback" not in result.stderr and result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]
