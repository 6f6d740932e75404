"""A stage at work, so that DVC records what was really done.

DVC notes settings, code and inputs as they are when a stage has ended, and takes the outputs that lie there
then. So a stage compares both ends of its work: its results appear only if all that DVC notes is still what
the stage began with, and only if the process of DVC that waits for them is still there.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glann.errors import DamagedFileError, GlannError
from glann.params import Params, load_params
from glann.runtime.code import AT_START, changed, digests
from glann.runtime.reporting import in_one_line
from glann.runtime.signals import Stopped
from glann.runtime.yaml_file import read_yaml
from stages.frame.dvc import (
    check_place,
    end_without,
    healing,
    is_there,
    noted_by_dvc,
    project_folder,
    waiting_process,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CODE = AT_START | digests(Path(__file__).parent.parent)


@contextmanager
def in_words(name: str) -> Iterator[None]:
    """Turn what people can do something about into a `GlannError` that says it, also of a damaged file."""
    try:
        yield
    except DamagedFileError as error:
        raise GlannError(f"{error}{healing(error.path)}") from None
    except Exception as error:
        if isinstance(error, GlannError) or (text := in_one_line(error, _less_memory(name))) is None:
            raise
        raise GlannError(text) from error


def _less_memory(name: str) -> str:
    settings = import_module(f"glann.{name}.settings")
    return str(settings.LESS_MEMORY)


class Stage:
    """A stage at work.

    Attributes
    ----------
    name
        As in dvc.yaml.
    params
        All of params.yaml, with paths that hold in an experiment's temporary workspace too.
    checkpoints
        The folder of checkpoints; it outlives such a workspace.
    """

    def __init__(self, name: str):
        self.name = name
        self._dvc = waiting_process(name)
        if self._dvc and "LOCAL_RANK" not in os.environ:  # processes that this stage starts, it ends itself
            end_without(self._dvc)
        check_place(name)
        self._settings, self._deps = noted_by_dvc(name)
        self._code = _noted_code(self._deps)
        self._before = self._noted()
        project = project_folder()
        self.params = _located(load_params(), project)
        self.checkpoints = project / ".checkpoints"

    def prepared(self, name: str, check: bool = True) -> "NDArray[np.uint8]":
        """Map an array of prepare, "images" or "holdout": uint8 [n, h, w, c].

        Raises
        ------
        GlannError
            If it is missing or, where `check` asks for that, is not what dataset.json says.
        """
        from glann.runtime.files import load_json
        from glann.runtime.npy import check_rows, load_npy

        path = f"data/prepare/{name}.npy"
        array = load_npy(path, mmap=True)
        if check:
            try:
                digest = load_json("data/prepare/dataset.json")["sha256"][f"{name}.npy"]
            except (KeyError, TypeError):
                raise GlannError(
                    f"data/prepare/dataset.json: no sha256 of {name}.npy; run: dvc repro"
                ) from None
            check_rows(path, array, digest)
        return array

    def launch(self, work: Callable[[], None]) -> None:
        """Call `work`, as `glann.processes.launch` does; a signal lets it stop where it can go on from."""
        from glann.runtime.processes import launch
        from glann.runtime.signals import stop_signals

        with stop_signals():
            launch(in_words(self.name)(work), self.params.compute)

    @contextmanager
    def outputs(self) -> Iterator[Path]:
        """Yield a folder for the results; all take their places in ``data/<stage>`` at the end, or none does.

        Raises
        ------
        Stopped
            If DVC has ended: another run may have begun.
        GlannError
            If settings, code or inputs have changed since the stage began.
        """
        from glann.runtime.files import all_or_none

        with all_or_none(Path("data") / self.name, self._check) as folder:
            yield folder

    def finish(self) -> None:
        """Look once more whether all is as it was, as late as can be: DVC notes it when the process is gone.

        Raises
        ------
        GlannError
            As in `outputs`; what was written is gone again.
        """
        if self._dvc is None or "LOCAL_RANK" in os.environ:
            return
        try:
            self._check()
        except GlannError:
            for path in Path("data", self.name).glob("[!.]*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise

    def _check(self) -> None:
        if self._dvc and not is_there(self._dvc):
            raise Stopped(f"{self.name}: DVC has ended, so nothing was written; run: dvc repro")
        code = [os.path.relpath(path) for path in changed(self._code)]
        what = code + _differences(self._before, self._noted())
        if what:
            raise GlannError(
                f"{self.name}: {', '.join(what)} changed while it ran, and DVC would record that as used; "
                "nothing was written: run dvc repro for the new state, or undo the change and run it"
            )

    def _noted(self) -> dict[str, Any]:
        """Return what DVC notes beside the code: settings, and size and time of each input."""
        values = read_yaml("params.yaml")
        settings = {key: _at(values, key) for key in self._settings}
        inputs = [Path(dep) for dep in self._deps if dep.startswith("data/")]
        found = {str(path): path.stat() for path in inputs if path.exists()}
        return settings | {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def _noted_code(deps: list[str]) -> dict[Path, str]:
    """Return the digests, at the start, of the code below a stage's dependencies; of all, if it has none."""
    noted = [Path(dep).resolve() for dep in deps]
    return {
        path: digest
        for path, digest in CODE.items()
        if not noted or any(path.resolve().is_relative_to(dep) for dep in noted)
    }


def _at(tree: Any, path: str) -> Any:
    """Return what stands at a path of keys, joined by dots, in a tree of dictionaries; None for nothing."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Return the paths of all keys, joined by dots, at which two trees of dictionaries differ."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [path]
    return [
        name
        for key in dict.fromkeys([*before, *after])
        for name in _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    ]


def _located(params: Params, project: Path) -> Params:
    """Replace paths to what the temporary workspace of an experiment lacks and the project has."""

    def located(path: str | None) -> str | None:
        if path is None or _has_files(Path(path)) or not _has_files(project / path):
            return path
        return str(project / path)

    loss = params.glo.loss.model_copy(update={"weights": located(params.glo.loss.weights)})
    return params.model_copy(
        update={
            "prepare": params.prepare.model_copy(update={"path": located(params.prepare.path)}),
            "glo": params.glo.model_copy(update={"loss": loss}),
            "evaluate": params.evaluate.model_copy(update={"weights": located(params.evaluate.weights)}),
        }
    )


def _has_files(path: Path) -> bool:
    """Return whether this is a file, or a folder with anything but hidden files."""
    return path.is_file() or (
        path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    )
