"""A running stage, which makes sure that DVC records what really happened.

DVC records settings, code and inputs as they are when a stage has ended, together with the outputs it finds.
So a stage checks them before it publishes its results: they appear only if everything that DVC records is as
it was when the stage began, and only if the DVC process that waits for them still exists.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glann.errors import DamagedFileError, GlannError
from glann.params import Params, load_params
from glann.runtime.code import AT_START, changed, digests
from glann.runtime.reporting import LESS_MEMORY, in_one_line
from glann.runtime.signals import Stopped
from glann.runtime.tensorboard import check_tensorboard
from glann.runtime.yaml_file import read_yaml
from stages.frame.dvc import (
    SETTINGS,
    Place,
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
def in_words(place: Place) -> Iterator[None]:
    """Turn errors that users can do something about into a `GlannError` with advice."""
    try:
        yield
    except DamagedFileError as error:
        raise GlannError(f"{error}{healing(error.path)}") from None
    except Exception as error:
        if (
            isinstance(error, GlannError)
            or (text := in_one_line(error, _less_memory(place.package or place.stage))) is None
        ):
            raise
        raise GlannError(text) from error


def _less_memory(package: str) -> str:
    try:
        return str(import_module(f"glann.{package}.settings").LESS_MEMORY)
    except (ImportError, AttributeError):  # must not hide the error that is being reported
        return LESS_MEMORY


class Stage:
    """A running stage.

    Attributes
    ----------
    name
        Its name.
    params
        All of params.yaml; paths also work in the temporary workspace of an experiment.
    settings
        params.yaml as it is written, nested dictionaries.
    place
        Its pipeline, and the folder where its results go.
    project
        The folder of the project, which outlives temporary workspaces.
    checkpoints
        The folder of checkpoints, in the project.
    page
        The html page on which a run of this stage can be watched; experiments in temporary workspaces have
        one each.
    events
        The folder for TensorBoard's files of this run; None: none.
    """

    def __init__(self, place: Place):
        self.place, self.name = place, place.name
        self._dvc = waiting_process(place)
        if self._dvc and "LOCAL_RANK" not in os.environ:  # the stage itself ends the processes it starts
            end_without(self._dvc)
        check_place(place)
        self._settings, self._deps = noted_by_dvc(place)
        self._code = _noted_code(self._deps)
        self._before = self._noted()
        self.project = project_folder()
        self.settings = read_yaml("params.yaml") or {}
        self.params = self._located(load_params())
        self.checkpoints = self.project / ".checkpoints"
        where = "" if self.project == Path.cwd() else f"-{Path.cwd().name}"
        self.page = self.project / f"watch/{self.name}{where}.html"
        self.events = None
        if self.params.compute.tensorboard:
            at_start = time.strftime("%Y%m%d-%H%M%S")
            folder = self.project / self.params.compute.tensorboard
            check_tensorboard(folder)
            self.events = folder / f"{self.name}{where}-{at_start}"

    def located(self, path: str | None) -> str | None:
        """Redirect a path that exists in the project but not in the temporary workspace of an experiment."""
        if path is None or _has_files(Path(path)) or not _has_files(self.project / path):
            return path
        return str(self.project / path)

    def _located(self, params: Params) -> Params:
        glo, located = params.glo, self.located
        loss = glo.loss.model_copy(update={"weights": located(glo.loss.weights)})
        return params.model_copy(
            update={
                "prepare": params.prepare.model_copy(update={"path": located(params.prepare.path)}),
                "glo": glo.model_copy(update={"loss": loss, "start_from": located(glo.start_from)}),
                "imle": params.imle.model_copy(update={"start_from": located(params.imle.start_from)}),
                "evaluate": params.evaluate.model_copy(update={"weights": located(params.evaluate.weights)}),
            }
        )

    def prepared(self, name: str, check: bool = True) -> "NDArray[np.uint8]":
        """Map an array of prepare, "images" or "holdout": uint8 [n, h, w, c].

        Raises
        ------
        GlannError
            If it is missing or, with `check`, does not match dataset.json.
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
        """Call `work` in one or more processes; on a signal it stops where it can resume."""
        from glann.runtime.processes import launch
        from glann.runtime.signals import stop_signals

        with stop_signals():
            launch(in_words(self.place)(work), self.params.compute)

    @contextmanager
    def outputs(self) -> Iterator[Path]:
        """Yield a folder for the results. At the end, all of them move to the stage's folder, or none.

        Raises
        ------
        Stopped
            If DVC has ended; another run may have begun.
        GlannError
            If settings, code or inputs have changed since the stage began.
        """
        from glann.runtime.files import all_or_none

        with all_or_none(self.place.folder, self._check) as folder:
            yield folder

    def finish(self) -> None:
        """Check once more, as late as possible: DVC records the state when this process has ended.

        Raises
        ------
        GlannError
            As in `outputs`; the results have been removed again.
        """
        if self._dvc is None or "LOCAL_RANK" in os.environ:
            return
        try:
            self._check()
        except GlannError:
            self.clear()
            raise

    def clear(self) -> None:
        """Delete the results. DVC does so before each run."""
        for path in self.place.folder.glob("[!.]*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check(self) -> None:
        if self._dvc and not is_there(self._dvc):
            raise Stopped(f"{self.name}: DVC has ended, so nothing was written; run: {self.place.again}")
        code = [os.path.relpath(path) for path in changed(self._code)]
        what = code + _differences(self._before, self._noted())
        if what:
            raise GlannError(
                f"{self.name}: {', '.join(what)} changed while it ran, and DVC would record that as used; "
                f"nothing was written: run {self.place.again}, or undo the change and run {self.place.again}"
            )

    def _noted(self) -> dict[str, Any]:
        """Return what DVC records besides code: settings, and size and time of each input."""
        settings: dict[str, Any] = {}
        for file, keys in self._settings.items():
            values, prefix = read_yaml(file), "" if file == SETTINGS else f"{file}: "
            settings |= {f"{prefix}{key}": at(values, key) for key in keys}
        inputs = [Path(dep) for dep in self._deps if dep.startswith("data/")]
        found = {str(path): path.stat() for path in inputs if path.exists()}
        return settings | {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def _noted_code(deps: list[str]) -> dict[Path, str]:
    """Return the digests of the code that DVC records for a stage; of all code, if it is not in dvc.yaml."""
    noted = [Path(dep).resolve() for dep in deps]
    return {
        path: digest
        for path, digest in CODE.items()
        if not noted or any(path.resolve().is_relative_to(dep) for dep in noted)
    }


def at(tree: Any, path: str) -> Any:
    """Return the value at a path of keys, joined by dots, in nested dictionaries; None if there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Return the paths of keys, joined by dots, at which two nested dictionaries differ."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [path]
    return [
        name
        for key in dict.fromkeys([*before, *after])
        for name in _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    ]


def _has_files(path: Path) -> bool:
    """Return whether this is a file, or a folder with files that are not hidden."""
    return path.is_file() or (
        path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
    )
