"""A small copy of this project, for tests and benchmarks that run the real pipeline."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


def clone_to(folder: Path, settings: dict[str, Any]) -> Path:
    """Make a repository of the files in the working tree, as a clone of their commit would be.

    Parameters
    ----------
    folder
        Where; is made.
    settings
        What its params.yaml has instead of the defaults.
    """
    names = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT
    )
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    change(folder, settings)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "small"]):
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *command]
        subprocess.run(git, cwd=folder, check=True)
    return folder


def change(folder: Path, values: dict[str, Any]) -> None:
    """Change keys of the project's params.yaml."""
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text())

    def update(into: dict[str, Any], new: dict[str, Any]) -> None:
        for key, value in new.items():
            if isinstance(value, dict):
                update(into[key], value)
            else:
                into[key] = value

    update(params, values)
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(params, file)


def dvc(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start DVC in a project, in a process group of its own, with this Python first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path} | options.pop("env", {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def output_digests(folder: Path) -> dict[str, str]:
    """Return the digest that dvc.lock has of every output."""
    lock = YAML(typ="safe").load((folder / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for entry in lock["stages"].values() for out in entry["outs"]}
