"""What stages know about DVC: its process, its workspaces, its cache, and what it records."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from glann.errors import GlannError
from glann.runtime.signals import Stopped
from glann.runtime.yaml_file import read_yaml

SETTINGS = "params.yaml"
PIPELINES = Path("dvc.yaml"), Path("peers/dvc.yaml")
LOOK_EVERY = 0.5  # seconds between checks whether DVC is still running
SECONDS_TO_STOP = 20  # for a last checkpoint after DVC has ended


@dataclass(frozen=True)
class Place:
    """A stage's place in its pipeline.

    Attributes
    ----------
    stage
        Its name in the pipeline's file; for one of a matrix, the name of the matrix.
    folder
        Where its results go.
    package
        The folder of glann that has its settings. "": the one with its name.
    pipeline
        The pipeline's file; its paths count from the folder of the project.
    item
        What distinguishes a stage of a matrix, by key.
    """

    stage: str
    folder: Path
    package: str = ""
    pipeline: Path = Path("dvc.yaml")
    item: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What this stage alone is called, in messages and in names of files."""
        return "-".join(self.item.values()) or self.stage

    @property
    def again(self) -> str:
        """The command that runs its pipeline."""
        return run_again(self.pipeline)


def run_again(pipeline: Path) -> str:
    """Return the command that runs a pipeline."""
    return "dvc repro" if pipeline == Path("dvc.yaml") else f"dvc repro {pipeline}"


def waiting_process(place: Place) -> psutil.Process | None:
    """Return the DVC process that runs this stage, or None if the stage was started by hand.

    DVC holds a lock on the outputs of the stage that it runs. The parent process alone is not enough: the
    shell between DVC and the stage may survive when DVC is killed, and any process may adopt an orphan.

    Raises
    ------
    Stopped
        If DVC has already ended.
    """
    if "DVC_STAGE" not in os.environ:
        return None
    ancestors = psutil.Process().parents()
    holders = _lock_holders(place.folder)
    for process in ancestors:
        if process.pid in holders:
            return process
    if holders or not ancestors:
        raise Stopped(f"{place.name}: DVC has ended; run: {place.again}")
    return ancestors[0]


def noted_by_dvc(place: Place) -> tuple[dict[str, list[str]], list[str]]:
    """Return what DVC records of a stage.

    Returns
    -------
    settings
        By the file that has them, keys joined by dots.
    deps
        Files and folders.
    """
    pipeline = (read_yaml(place.pipeline) if place.pipeline.is_file() else None) or {}
    entry = (pipeline.get("stages") or {}).get(place.stage) or {}
    settings: dict[str, list[str]] = {}
    for given in entry.get("params", ["seed", place.stage]):
        # "key.path", or a file with a list of keys
        files = given if isinstance(given, dict) else {SETTINGS: [given]}
        for name, keys in files.items():
            settings.setdefault(name, []).extend(_filled(key, place) for key in keys or [])
    deps = [dep if isinstance(dep, str) else next(iter(dep)) for dep in entry.get("deps", [])]
    return settings, [_filled(dep, place) for dep in deps]


def _filled(text: str, place: Place) -> str:
    """Put the item of a matrix into a name, as DVC does."""
    for key, value in place.item.items():
        text = text.replace(f"${{item.{key}}}", value)
    return text


def recorded(stage: str) -> dict[str, Any]:
    """Return the settings with which DVC has recorded the last run of a stage, nested as in params.yaml."""
    lock = (read_yaml("dvc.lock") if Path("dvc.lock").is_file() else None) or {}
    entry = (lock.get("stages") or {}).get(stage) or {}
    found: dict[str, Any] = (entry.get("params") or {}).get("params.yaml") or {}
    return found


def check_place(place: Place) -> None:
    """Refuse, before the work begins, a folder from which DVC would not accept outputs.

    Raises
    ------
    GlannError
        If the folder of its results, or one above it, is a link.
    """
    folder = place.folder
    if "DVC_STAGE" in os.environ and (found := folder.resolve()) != folder.absolute():
        raise GlannError(
            f"{folder} is linked to {found}, and DVC accepts no outputs through a link; make it a folder; to "
            "keep large files on another disk, run: dvc cache dir DISK/cache && dvc config cache.type symlink"
        )


def _lock_holders(folder: Path) -> set[int]:
    """Return the processes that hold DVC's lock on a stage's outputs: its folder, or files in it."""
    own = str(folder.absolute())
    for _ in range(10):  # DVC writes the file in place, so it may be incomplete
        try:
            locked = json.loads(Path(".dvc/tmp/rwlock").read_text(encoding="utf-8"))["write"]
            return {int(locked[path]["pid"]) for path in locked if f"{path}{os.sep}".startswith(own + os.sep)}
        except (ValueError, KeyError, TypeError, AttributeError):
            time.sleep(0.05)
        except OSError:
            break
    return set()


def is_there(process: psutil.Process) -> bool:
    """Return whether a process is still running."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_without(dvc: psutil.Process) -> None:
    """Ask this process to stop when DVC has ended, and end it if it does not stop in time."""

    def watch() -> None:
        while is_there(dvc):
            time.sleep(LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_STOP)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def project_folder() -> Path:
    """Return the folder of the project; for a temporary workspace, the project it was copied from.

    For `dvc exp run --queue` and `--temp`, DVC creates workspaces in .dvc/tmp/exps that hold only the files
    tracked by git, and removes them afterwards.
    """
    here = Path.cwd()
    for folder in here.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return here


def healing(path: Path) -> str:
    """Return advice for restoring a damaged output of a stage; "" for other files.

    DVC trusts the files in its cache: a file that is damaged there is restored again and again, even after a
    forced run of the stage.
    """
    outs = [
        (out["path"], out["md5"], run_again(pipeline))
        for pipeline in PIPELINES
        if (lock := pipeline.with_suffix(".lock")).is_file()
        for entry in ((read_yaml(lock) or {}).get("stages") or {}).values()
        for out in entry.get("outs", [])
    ]
    found = next((out for out in outs if path.is_relative_to(out[0])), None)
    if found is None:
        return ""
    output, recorded, again = found
    where = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cache = Path(where or ".dvc/cache").absolute()
    if cache.is_relative_to(Path.cwd()):
        cache = cache.relative_to(Path.cwd())
    recorded = _in_folder(cache, recorded, path.relative_to(output).as_posix())
    cached = _cached(cache, recorded)
    file, whole = shlex.quote(str(path)), shlex.quote(output)
    if cached.is_file() and hashlib.md5(cached.read_bytes(), usedforsecurity=False).hexdigest() == recorded:
        return f"; DVC's cache has an undamaged copy; run: rm {file} && dvc checkout {whole}"
    return f"; run: rm -rf {whole} {shlex.quote(str(cached))} && {again}"


def _cached(cache: Path, recorded: str) -> Path:
    """Return where DVC keeps a file or the list of a folder's files."""
    return cache / "files/md5" / recorded[:2] / recorded[2:]


def _in_folder(cache: Path, recorded: str, name: str) -> str:
    """Return what DVC has recorded of a file in an output that is a folder; otherwise `recorded`."""
    if not recorded.endswith(".dir"):
        return recorded
    try:
        listed = json.loads(_cached(cache, recorded).read_text(encoding="utf-8"))
        return str(next(entry["md5"] for entry in listed if entry["relpath"] == name))
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return recorded
