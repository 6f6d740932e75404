"""Comparing GLANN with its rivals: samples, reconstructions, and what is found foreign.

Samples are compared with hold-out images, by the metrics of `glann.evaluate`. Rows of the table:

- ``train``: training images, as in `glann.evaluate.evaluation`;
- ``glann``, ``vae`` and the other models: their samples, the mean over seeds;
- ``energy_refined``: the samples of ``energy`` after `glann.peers.uses.refine`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score
from torch import Tensor

from glann.errors import DamagedFileError, GlannError
from glann.evaluate.comparison import COLUMNS, Described, compare
from glann.evaluate.diagnosis import nearest_images
from glann.evaluate.evaluation import CHUNK_BYTES, SEARCHED, Images, describe
from glann.evaluate.features import choose_kind, extract, feature_network
from glann.evaluate.metrics import frechet_distance, prd
from glann.evaluate.settings import Evaluate
from glann.neighbors.search import nearest
from glann.networks.decoders.network import DecoderArchitecture
from glann.networks.generator import load_generator
from glann.peers.judges import JudgeNetwork
from glann.peers.settings import Peers
from glann.peers.uses import CODES, pixel_error, reconstruct, refine, strangeness
from glann.prepare.reading import decode_all, decode_row
from glann.prepare.settings import Prepare
from glann.projection.projector import Projection, Projector
from glann.runtime.compute import Execution
from glann.runtime.files import load_json
from glann.runtime.npy import load_npy
from glann.runtime.randomness import noise_rows, stream, stream_seed
from glann.runtime.settings import Section
from glann.runtime.validation import one_line
from glann.sample.generator import Generator

PROJECTED = 32  # images that are reconstructed; projection needs seconds for each
SCORED = 1000  # most hold-out and most foreign images that rivals score
SHOWN = 24  # samples of each model that are kept for the pictures


class Outcome(Section):
    """How a training has ended, as in its result.json."""

    images: int | None
    """how many images it has seen; null: this was not counted"""
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
    failed
        Why there is no model. None: there is one.
    """

    model: str
    seed: int
    folder: Path
    images: int | None
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
        return _decoded(generator, generator.sample_latents(count, self.seed_of_samples))

    def judge(self, execution: Execution) -> JudgeNetwork:
        """Read a rival's judge."""
        return JudgeNetwork.load(self.folder / "judge.safetensors").to(execution.device)

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
            runs.append(Run(model, seed, folder, found.images, found.failed))
    return runs


@dataclass(frozen=True)
class Comparison:
    """The results of `compare_peers`.

    Attributes
    ----------
    runs
        All trainings.
    features
        Kind of features.
    count, reference_count
        Number of images per row, and of hold-out images.
    table
        For each row, its metrics by name: the mean over seeds.
    spread
        For each row with two trainings or more, the difference of its largest and its smallest value, by the
        metric's name.
    acceptance
        Share of the proposals that the refinement of ``energy`` accepted. None: there is no such model.
    curves
        By model, the Fréchet distance at fractions of the training, pairs of both: of the first that did not
        fail, if it kept earlier states.
    samples
        For each row, its first samples, uint8 [k, h, w, c], with the first seed that did not fail.
    reconstructed
        The first hold-out images as ``holdout``, and what is drawn of them: ``glann`` (by projection),
        ``vae``, ``ogan``, and ``nearest``, the training images most similar to them; uint8 [k, h, w, c] each.
    reconstructions
        How far they are from the hold-out images: in ``pixels`` (root mean square, grey levels) and in
        ``features`` (mean distance).
    foreign
        By model, the area under the ROC curve (``auc``) when it tells foreign images from hold-out images,
        and how many there were of each. ``glann`` judges by the distance from the projected latent to the
        nearest training latent, ``glann_distance`` by what the projection could not reconstruct, and rivals
        by `glann.peers.uses.strangeness`.
    """

    runs: list[Run]
    features: str
    count: int
    reference_count: int
    table: dict[str, dict[str, float]]
    spread: dict[str, dict[str, float]]
    acceptance: float | None
    curves: dict[str, list[tuple[float, float]]]
    samples: dict[str, NDArray[np.uint8]]
    reconstructed: dict[str, NDArray[np.uint8]]
    reconstructions: dict[str, dict[str, float]]
    foreign: dict[str, dict[str, float]]


def compare_peers(
    runs: Sequence[Run],
    settings: Peers,
    config: Evaluate,
    seed: int,
    images: NDArray[np.uint8],
    holdout: NDArray[np.uint8],
    foreign: NDArray[np.uint8],
    projector: Projector,
    latents: Tensor,
) -> Comparison:
    """Compare GLANN with its rivals.

    Parameters
    ----------
    runs
        The trainings, from `find_runs`.
    settings, config
        peers/params.yaml, and the `evaluate` section of params.yaml.
    seed
        Seed of what does not belong to one training.
    images, holdout, foreign
        uint8 [n, h, w, c] each: training images, hold-out images, and images that are to be found foreign.
    projector, latents
        Those of the pipeline's own model, which stands for GLANN where images are projected; latents are
        float32 [n, d].

    Raises
    ------
    GlannError
        If a file is damaged, or weights of features are missing.
    """
    execution = projector.execution
    yardstick = Yardstick(config, seed, images, holdout, execution)
    rows = {"train": [yardstick.measure("train", lambda part: np.asarray(images[yardstick.chosen[part]]))]}
    samples: dict[str, NDArray[np.uint8]] = {}

    def add(name: str, drawn: Images) -> None:
        rows.setdefault(name, []).append(yardstick.measure(name, drawn))
        samples.setdefault(name, drawn(slice(SHOWN)))

    acceptance = []
    for run in runs:
        if run.failed:
            continue
        generator = run.generator(execution)
        add(run.model, run.samples(generator, yardstick.count))
        if run.model == "energy":
            # The noise of the same samples, but not yet projected to the sphere.
            dim = generator.decoder.architecture.latent_dim
            noise = noise_rows(0, yardstick.count, dim, run.seed_of_samples, "sample")
            refined, accepted = refine(noise, run.judge(execution), generator, settings.refine, run.seed)
            add("energy_refined", _decoded(generator, refined))
            acceptance.append(accepted)
    firsts: dict[str, Run] = {}
    for run in runs:
        if not run.failed:
            firsts.setdefault(run.model, run)
    curves = {
        name: [*earlier, (1.0, rows[name][0]["frechet"])]
        for name, run in firsts.items()
        if (earlier := _earlier(run, yardstick))
    }
    rivals = {name: run for name, run in firsts.items() if name != "glann"}
    projected = projector.project(np.asarray(holdout[:PROJECTED]))
    pictures = _reconstructed(rivals, yardstick, projected)
    return Comparison(
        runs=[*runs],
        features=yardstick.kind,
        count=yardstick.count,
        reference_count=len(holdout),
        table={name: _over(found, np.mean) for name, found in rows.items()},
        spread={name: _over(found, np.ptp) for name, found in rows.items() if len(found) > 1},
        acceptance=float(f"{np.mean(acceptance):.3g}") if acceptance else None,
        curves=curves,
        samples=samples,
        reconstructed=pictures,
        reconstructions={
            name: yardstick.apart(pictures["holdout"], made)
            for name, made in pictures.items()
            if name != "holdout"
        },
        foreign=_foreign(rivals, holdout, foreign, projector, projected, latents),
    )


class Yardstick:
    """The hold-out images, and how other images are compared with them.

    Parameters
    ----------
    config, seed, images, holdout
        As in `compare_peers`.
    execution
        Device and precision.

    Attributes
    ----------
    kind
        Kind of features.
    count
        Number of images per row.
    chosen, pool
        Training images by number, int64: `count` of them for the row ``train``, the same as in
        `glann.evaluate.evaluation`, and those that are searched for the most similar ones.
    """

    def __init__(
        self,
        config: Evaluate,
        seed: int,
        images: NDArray[np.uint8],
        holdout: NDArray[np.uint8],
        execution: Execution,
    ):
        self.images, self.holdout, self.execution, self._seed = images, holdout, execution, seed
        self.kind = choose_kind(config.features, config.weights)
        self.count = min(config.count, len(images))
        order = torch.randperm(len(images), generator=stream(seed, "evaluate", "rows")).numpy()
        self.chosen, self.pool = order[: self.count], np.sort(order[:SEARCHED])
        self.network = feature_network(self.kind, config.weights, holdout, execution)
        self._reference = self._described("hold-out", lambda part: np.asarray(holdout[part]), len(holdout))

    def measure(self, name: str, drawn: Images) -> dict[str, float]:
        """Compare `count` images with the hold-out images: a number per key of `COLUMNS`."""
        rows = self._described(name, drawn, self.count)
        return compare(rows, self._reference, prd(rows.features, self._reference.features, self._seed))

    def frechet(self, name: str, drawn: Images) -> float:
        """Return only the Fréchet distance of `count` images, to six digits."""
        rows = self._described(name, drawn, self.count)
        return float(f"{frechet_distance(rows.features, self._reference.features):.6g}")

    def apart(self, images: NDArray[np.uint8], others: NDArray[np.uint8]) -> dict[str, float]:
        """Compare pairs of images uint8 [n, h, w, c] in pixels and in features, to four digits."""
        a, b = (extract(self.network, part, "features of reconstructions") for part in (images, others))
        pixels = np.sqrt(np.square(pixel_error(images, others)).mean())
        return {"pixels": float(f"{pixels:.4g}"), "features": float(f"{(a - b).norm(dim=1).mean():.4g}")}

    def _described(self, name: str, drawn: Images, count: int) -> Described:
        chunk = max(1, CHUNK_BYTES // self.holdout[0].nbytes)
        return describe(self.network, drawn, count, chunk, f"{self.kind} features of {name}")


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
    try:
        rows = load_npy(path, mmap=True)
    except GlannError as error:
        raise GlannError(f"peers/params.yaml: foreign: {error}") from None
    pictures_fit = rows.ndim == 3 or (rows.ndim == 4 and rows.shape[3] in (1, 3))
    if rows.dtype != np.uint8 or not pictures_fit or 0 in rows.shape:
        raise GlannError(
            f"peers/params.yaml: foreign: {path}: expected uint8 [n, h, w] or [n, h, w, 1 or 3], found "
            f"{rows.dtype} {[*rows.shape]}"
        )
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


def _earlier(run: Run, yardstick: Yardstick) -> list[tuple[float, float]]:
    """Return the Fréchet distance of each snapshot, after the fraction of the training that was done."""
    found = []
    for at, name in run.snapshots():
        samples = run.samples(run.generator(yardstick.execution, name), yardstick.count)
        found.append((at, yardstick.frechet(f"{run.model} at {at:g}", samples)))
    return found


def _decoded(generator: Generator, latents: Tensor) -> Images:
    return lambda part: generator.decode(latents[part])


def _over(rows: Sequence[Mapping[str, float]], of: Callable[[list[float]], float]) -> dict[str, float]:
    """Summarise each column over rows, to six digits."""
    return {column: float(f"{of([row[column] for row in rows]):.6g}") for column in COLUMNS}


def _reconstructed(
    rivals: Mapping[str, Run], yardstick: Yardstick, projected: Projection
) -> dict[str, NDArray[np.uint8]]:
    """Return hold-out images and their reconstructions, see `Comparison`."""
    holdout = np.asarray(yardstick.holdout[:PROJECTED])
    made = {"holdout": holdout, "glann": projected.images}
    for name in CODES:
        if name in rivals:
            judge = rivals[name].judge(yardstick.execution)
            made[name] = reconstruct(name, holdout, judge, rivals[name].generator(yardstick.execution))
    similar = nearest_images(yardstick.network, holdout, yardstick.images, yardstick.pool)
    return made | {"nearest": similar}


def _foreign(
    rivals: Mapping[str, Run],
    holdout: NDArray[np.uint8],
    foreign: NDArray[np.uint8],
    projector: Projector,
    projected: Projection,
    latents: Tensor,
) -> dict[str, dict[str, float]]:
    """Measure how well foreign images are told from hold-out images, see `Comparison`."""

    def area(own: NDArray[np.float32], other: NDArray[np.float32]) -> dict[str, float]:
        is_foreign = np.repeat([0, 1], [len(own), len(other)])
        found = roc_auc_score(is_foreign, np.concatenate([own, other]))
        return {"auc": round(float(found), 4), "holdout": len(own), "foreign": len(other)}

    known = F.normalize(latents, dim=1)
    others = projector.project(foreign[:PROJECTED])
    places = [nearest(found.latents, known)[0][:, 0].numpy() for found in (projected, others)]
    areas = {"glann": area(*places), "glann_distance": area(projected.distances, others.distances)}
    for name, run in rivals.items():
        judge, generator = run.judge(projector.execution), run.generator(projector.execution)
        scores = [strangeness(name, part[:SCORED], judge, generator) for part in (holdout, foreign)]
        areas[name] = area(*scores)
    return areas
