"""What a comparison reads: trainings that have ended, and images that models should find foreign."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from glann.errors import DamagedFileError, GlannError
from glann.evaluate.evaluation import Images
from glann.networks.decoders.network import DecoderArchitecture
from glann.networks.generator import load_generator
from glann.peers.judges import JudgeNetwork, judges_of
from glann.peers.settings import Peers
from glann.prepare.reading import MOST_PIXELS, MOST_SIDE, decode_all, decode_row
from glann.prepare.settings import Prepare
from glann.runtime.compute import Execution
from glann.runtime.files import load_json
from glann.runtime.npy import load_npy
from glann.runtime.randomness import stream_seed
from glann.runtime.settings import Section
from glann.runtime.validation import one_line
from glann.sample.generator import Generator

SCORED = 1000  # most hold-out and most foreign images that rivals score


class Outcome(Section):
    """How a training has ended, as in its result.json."""

    images: int | None
    """how many images it has seen; null: this was not counted"""
    seconds: float | None = None
    """how long that takes, as `glann peers` has measured it; null: it has not"""
    failed: str | None
    """why there is no model; null: there is one"""


@dataclass(frozen=True)
class Run:
    """A training that has ended.

    Attributes
    ----------
    model, seed
        A rival's name, or "glann", and the seed of the training.
    folder
        Where its files are.
    images
        How many images it has seen. None: this was not counted.
    seconds
        How long that takes, as `glann peers` has measured it. None: it has not.
    failed
        Why there is no model. None: there is one.
    """

    model: str
    seed: int
    folder: Path
    images: int | None
    seconds: float | None
    failed: str | None

    @property
    def seed_of_samples(self) -> int:
        """The seed of the samples that are compared."""
        return stream_seed(self.seed, "peers", "samples")

    def generator(self, execution: Execution, snapshot: str = "generator") -> Generator:
        """Read the trained model, or what it was at an earlier time."""
        return Generator(*load_generator(self.folder / f"{snapshot}.safetensors"), execution)

    def samples(self, generator: Generator, count: int) -> Images:
        """Draw samples, which are decoded when they are asked for."""
        latents = generator.sample_latents(count, self.seed_of_samples)
        return decoded(generator, latents, f"{self.model}: decode")

    def judge(self, execution: Execution) -> JudgeNetwork:
        """Read a rival's judge.

        Raises
        ------
        DamagedFileError
            If it is that of another model.
        """
        path = self.folder / "judge.safetensors"
        judge = JudgeNetwork.load(path)
        _, decoder = load_generator(self.folder / "generator.safetensors")
        if judge.architecture != judges_of(self.model, decoder.architecture)["judge"]:
            raise DamagedFileError(path, "is the judge of another model")
        return judge.to(execution.device)

    def check(self, execution: Execution) -> None:
        """Read every file once, so that a damaged one is found before hours of measuring.

        Raises
        ------
        GlannError
            If one is damaged or missing.
        """
        if self.failed:
            return
        for snapshot in ("generator", *(name for _, name in self.snapshots())):
            self.generator(execution, snapshot)
        if self.model != "glann":
            self.judge(execution)

    def snapshots(self) -> list[tuple[float, str]]:
        """Return fractions of the training in ascending order, and what `generator` calls each."""
        found = (self.folder / "snapshots").glob("*.safetensors")
        return sorted((float(path.stem), f"snapshots/{path.stem}") for path in found)


def find_runs(trained: Path, settings: Peers) -> list[Run]:
    """Find the trainings of GLANN and of all rivals with all seeds.

    Parameters
    ----------
    trained
        The folder that has one of each.
    settings
        Which they are.

    Raises
    ------
    GlannError
        If one is missing.
    """
    runs = []
    for model in ("glann", *settings.models):
        for seed in settings.seeds:
            folder = trained / f"{model}-{seed}"
            if not (folder / "result.json").is_file():
                raise GlannError(f"{folder}: no result of a training; run: dvc repro peers/dvc.yaml")
            try:
                found = Outcome.model_validate(load_json(folder / "result.json"))
            except ValidationError as error:
                raise DamagedFileError(folder / "result.json", one_line(error)) from None
            runs.append(Run(model, seed, folder, found.images, found.seconds, found.failed))
    return runs


def load_foreign(
    path: str | None, holdout: NDArray[np.uint8], architecture: DecoderArchitecture
) -> NDArray[np.uint8]:
    """Read the images that a model should find foreign, prepared like those that it was trained on.

    Parameters
    ----------
    path
        An .npy file, uint8 [n, h, w] or [n, h, w, c]; at most 1000 rows are read. None: the hold-out images
        with inverted brightness.
    holdout
        uint8 [m, h, w, c].
    architecture
        What size the decoder draws, and how its images were prepared.

    Returns
    -------
    NDArray
        uint8 [k, h, w, c].

    Raises
    ------
    GlannError
        If the file has no such images.
    """
    if path is None:
        return 255 - np.asarray(holdout[:SCORED])
    rows = open_foreign(path)
    as_trained = Prepare(
        resolution=architecture.size,
        channels=architecture.channels,
        fit=architecture.origin.fit,
        background=architecture.origin.background,
    )
    pictures = []
    for found in decode_all([*rows[:SCORED]], decode_row, as_trained):
        if isinstance(found, str):
            raise GlannError(f"peers/params.yaml: foreign: {path}: {found}")
        pictures.append(found)
    return np.stack(pictures)


def open_foreign(path: str) -> NDArray[np.uint8]:
    """Open the file of foreign pictures, and check what it is.

    Raises
    ------
    GlannError
        If the file has no such images.
    """
    try:
        rows = load_npy(path, mmap=True)
    except GlannError as error:
        raise GlannError(f"peers/params.yaml: foreign: {error}") from None
    # [n, h, 3] is no stack of grey pictures three pixels wide, but one picture in colour.
    pictures_fit = rows.shape[3:] in ((1,), (3,)) or (rows.ndim == 3 and rows.shape[2] > 4)
    if rows.dtype != np.uint8 or not pictures_fit or 0 in rows.shape:
        raise GlannError(
            f"peers/params.yaml: foreign: {path}: expected uint8 [n, h, w] or [n, h, w, 1 or 3], found "
            f"{rows.dtype} {[*rows.shape]}"
        )
    if rows.shape[1] * rows.shape[2] > MOST_PIXELS or max(rows.shape[1:3]) > MOST_SIDE:
        raise GlannError(
            f"peers/params.yaml: foreign: {path}: at most {MOST_PIXELS:,} pixels per picture "
            f"can be read, found {rows.shape[1]} x {rows.shape[2]}; make them smaller"
        )
    return rows


def decoded(generator: Generator, latents: Tensor, title: str) -> Images:
    """Return latents float [n, d] as images, which are decoded when they are asked for."""
    return lambda part: generator.decode(latents[part], title)
