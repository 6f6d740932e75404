"""Comparing GLANN with its rivals: samples, reconstructions, and what is found foreign.

Samples are compared with hold-out images, by the metrics of `glann.evaluate`. Rows of the table:

- ``train``: training images, as in `glann.evaluate.evaluation`;
- ``glann``, ``vae`` and the other models: their samples, the mean over seeds;
- ``energy_refined``: the samples of ``energy`` after `glann.peers.uses.refine`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor

from glann.evaluate.comparison import Described, compare
from glann.evaluate.diagnosis import nearest_images
from glann.evaluate.evaluation import CHUNK_BYTES, SEARCHED, Images, describe
from glann.evaluate.features import choose_kind, extract, feature_network
from glann.evaluate.metrics import frechet_distance, prd
from glann.evaluate.settings import Evaluate
from glann.neighbors.search import nearest
from glann.peers.runs import SCORED, Run, decoded
from glann.peers.settings import Peers
from glann.peers.uses import CODES, pixel_error, reconstruct, refine, strangeness
from glann.projection.projector import Projection, Projector
from glann.runtime.compute import Execution
from glann.runtime.randomness import noise_rows, stream
from glann.sample.generator import Generator

PROJECTED = 32  # images that are reconstructed; projection needs seconds for each
TIMED, LONG_ENOUGH = 64, 1.0  # samples that are drawn at once for a timing, and its seconds
SHOWN = 24  # samples of each model that are kept for the pictures


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
    to_training
        For each row of a model, how its samples relate to `count` training images, means over seeds:
        ``frechet_train`` is the Fréchet distance to them, and ``novelty`` the median distance of a sample to
        the nearest of them, divided by that of the hold-out images: below 1 if samples are copies, or nearly.
        Without novelty if most hold-out images are training images too.
    spread
        For each row with two trainings or more, the difference of its largest and its smallest value, by the
        metric's name.
    acceptance
        Share of the proposals that the refinement of ``energy`` accepted. None: there is no such model.
    speed
        For each row of a model, samples per second, measured now.
    curves
        By model, the Fréchet distance at fractions of the training, pairs of both: of the first that did not
        fail and kept earlier states, if there is one.
    samples
        For each row, its first samples, uint8 [k, h, w, c], with the first seed that did not fail.
    reconstructed
        The first hold-out images as ``holdout``, and what is drawn of them: ``vae_encoded``,
        ``ogan_encoded``, each model with ``_projected``, and ``nearest``, the training images most similar to
        them; uint8 [k, h, w, c] each.
    reconstructions
        How far they are from the hold-out images: in ``pixels`` (root mean square, grey levels) and in
        ``features`` (mean distance).
    foreign
        By model, the area under the ROC curve (``auc``) when it tells foreign images from hold-out images,
        and how many there were of each. ``glann_projection`` judges by how badly the projection
        reconstructs the image, ``glann_latents`` by the distance from the projected latent to the nearest
        training latent, and rivals by `glann.peers.uses.strangeness`.
    """

    runs: list[Run]
    features: str
    count: int
    reference_count: int
    table: dict[str, dict[str, float]]
    to_training: dict[str, dict[str, float]]
    spread: dict[str, dict[str, float]]
    acceptance: float | None
    speed: dict[str, float]
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
    weights: str | None = None,
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
    weights
        As for `Projector`.

    Raises
    ------
    GlannError
        If a file is damaged, or weights of features are missing.
    """
    execution = projector.execution
    for run in runs:
        run.check(execution)
    yardstick = Yardstick(config, seed, images, holdout, execution)
    rows = {"train": [yardstick.of_training()]}
    to_training: dict[str, list[dict[str, float]]] = {}
    samples: dict[str, NDArray[np.uint8]] = {}

    def add(name: str, drawn: Images) -> None:
        found, beside = yardstick.measure(name, drawn)
        rows.setdefault(name, []).append(found)
        to_training.setdefault(name, []).append(beside)
        samples.setdefault(name, drawn(slice(SHOWN)))

    acceptance, speed = [], dict[str, float]()
    firsts, curves = dict[str, Run](), dict[str, list[tuple[float, float]]]()
    for run in runs:
        if run.failed:
            continue
        generator = run.generator(execution)
        if run.model not in speed:
            speed[run.model] = samples_per_second(generator)
        add(run.model, run.samples(generator, yardstick.count))
        firsts.setdefault(run.model, run)
        if run.model not in curves and (earlier := _earlier(run, yardstick)):
            curves[run.model] = [*earlier, (1.0, rows[run.model][-1]["frechet"])]
        if run.model == "energy":
            # The noise of the same samples, but not yet projected to the sphere.
            dim = generator.decoder.architecture.latent_dim
            noise = noise_rows(0, yardstick.count, dim, run.seed_of_samples, "sample")
            began = time.monotonic()
            refined, accepted = refine(noise, run.judge(execution), generator, settings.refine, run.seed)
            per_sample = (time.monotonic() - began) / len(noise) + 1 / speed["energy"]
            speed.setdefault("energy_refined", 1 / per_sample)
            add("energy_refined", decoded(generator, refined, "energy, refined: decode"))
            acceptance.append(accepted)
    rivals = {name: run for name, run in firsts.items() if name != "glann"}
    projected = projector.project(np.asarray(holdout[:PROJECTED]), "glann: project")
    pictures = _reconstructed(rivals, yardstick, projected, weights)
    return Comparison(
        runs=[*runs],
        features=yardstick.kind,
        count=yardstick.count,
        reference_count=len(holdout),
        table={name: _over(found, np.mean) for name, found in rows.items()},
        to_training={name: _over(found, np.mean) for name, found in to_training.items()},
        spread={name: _over(found, np.ptp) for name, found in rows.items() if len(found) > 1},
        acceptance=float(f"{np.mean(acceptance):.3g}") if acceptance else None,
        speed=speed,
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
        self._training = self._described(
            "train", lambda part: np.asarray(images[self.chosen[part]]), self.count
        )
        self._usual = self._distance_to_training(self._reference)

    def of_training(self) -> dict[str, float]:
        """Compare the chosen training images with the hold-out images: a number per key of `COLUMNS`."""
        return self._compared(self._training)

    def measure(self, name: str, drawn: Images) -> tuple[dict[str, float], dict[str, float]]:
        """Compare `count` images likewise, and with training images too, see `Comparison`."""
        rows = self._described(name, drawn, self.count)
        beside = {"frechet_train": frechet_distance(rows.features, self._training.features)}
        if self._usual:
            beside["novelty"] = self._distance_to_training(rows) / self._usual
        return self._compared(rows), beside

    def _compared(self, rows: Described) -> dict[str, float]:
        return compare(rows, self._reference, prd(rows.features, self._reference.features, self._seed))

    def _distance_to_training(self, rows: Described) -> float:
        """Return the median distance to the nearest training image."""
        squares, _ = nearest(rows.features, self._training.features)
        return float(squares[:, 0].clamp_min(0).sqrt().median())

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


def samples_per_second(generator: Generator) -> float:
    """Measure how many samples a generator draws per second, in blocks of `TIMED`."""
    generator.sample(TIMED)
    drawn, began = 0, time.monotonic()
    while not drawn or time.monotonic() - began < LONG_ENOUGH:
        generator.sample(TIMED)
        drawn += TIMED
    return drawn / (time.monotonic() - began)


def _earlier(run: Run, yardstick: Yardstick) -> list[tuple[float, float]]:
    """Return the Fréchet distance of each snapshot, after the fraction of the training that was done."""
    found = []
    for at, name in run.snapshots():
        samples = run.samples(run.generator(yardstick.execution, name), yardstick.count)
        found.append((at, yardstick.frechet(f"{run.model} at {at:g}", samples)))
    return found


def _over(rows: Sequence[Mapping[str, float]], of: Callable[[list[float]], float]) -> dict[str, float]:
    """Summarise each column over rows, to six digits."""
    return {column: float(f"{of([row[column] for row in rows]):.6g}") for column in rows[0]}


def _reconstructed(
    rivals: Mapping[str, Run], yardstick: Yardstick, projected: Projection, weights: str | None
) -> dict[str, NDArray[np.uint8]]:
    """Return hold-out images and their reconstructions, see `Comparison`."""
    holdout = np.asarray(yardstick.holdout[:PROJECTED])
    made = {"holdout": holdout, "glann_projected": projected.images}
    for name, run in rivals.items():
        generator = run.generator(yardstick.execution)
        if name in CODES:
            judge = run.judge(yardstick.execution)
            made[f"{name}_encoded"] = reconstruct(name, holdout, judge, generator)
        made[f"{name}_projected"] = (
            Projector(generator, weights=weights).project(holdout, f"{name}: project").images
        )
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
    others = projector.project(foreign[:PROJECTED], "glann: project foreign images")
    places = [nearest(found.latents, known)[0][:, 0].numpy() for found in (projected, others)]
    areas = {
        "glann_projection": area(projected.distances, others.distances),
        "glann_latents": area(*places),
    }
    for name, run in rivals.items():
        judge, generator = run.judge(projector.execution), run.generator(projector.execution)
        scores = [strangeness(name, part[:SCORED], judge, generator) for part in (holdout, foreign)]
        areas[name] = area(*scores)
    return areas
