"""The `glann` command, run as a user runs it."""

import os
import subprocess
import sys
import tempfile
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


def glann_at_once(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that has already imported torch; for the rest like `glann`."""
    command = [str(GLANN), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("stdout", "stderr")]
        process = PREPARED.Process(target=_main, args=(command, cwd, *said), daemon=True)
        process.start()
        process.join(timeout=120)
        assert process.exitcode is not None, "still running"
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in said))


def _main(command: list[str], cwd: Path, out: Path, err: Path) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(cwd)
    sys.argv = command
    main()


def fails_in_one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0 and "Traceback" not in result.stderr and result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]
