"""What a run will take on this machine: time, memory and disk of each stage, from a few timed steps."""

import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glann.evaluate.comparison import Described, compare
from glann.evaluate.features import choose_kind, extract, feature_network
from glann.evaluate.metrics import prd
from glann.glo.losses import Perceptual
from glann.glo.train import memory_of_glo, train_glo
from glann.imle.fit import fit_imle, memory_of_imle
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.params import Params
from glann.prepare.dataset import WORTH_PROCESSES, check_enough, compares, processes_that_fit
from glann.prepare.likeness import read_all
from glann.prepare.sources import SOURCES, find_images
from glann.runtime.compute import execution
from glann.runtime.console import say
from glann.runtime.memory import available
from glann.sample.generator import Generator

DOWNLOADED_IMAGES = {
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "celeba": 162_770,
    "olivetti": 400,
    "lfw": 13_233,
}
BATCHES = 4  # of the images that GLO is timed with
FROM_SCRATCH = {"start_from": None, "conditional": False}  # with classes, a fit takes about as long
EPOCHS = (2, 6)  # of the two runs that are compared: what they have in common does not count
TIMED = (64, 192)  # images that features are computed of
DECODED = 48  # pictures that are read
MOST_LATENTS = 20_000  # with which IMLE is timed
MOST_COMPARED = 1_000  # images with which metrics are timed


@dataclass
class Need:
    """What a stage needs.

    Attributes
    ----------
    seconds
        Time.
    memory
        Peak of the process in bytes, on the device for training on a GPU; None: little.
    disk
        Bytes of its results.
    """

    seconds: float
    memory: float | None
    disk: float


def estimate(params: Params) -> dict[str, Need]:
    """Time a few steps of each stage, and return what a whole run needs, by stage.

    Images are random: times depend on their number and size, not on what they show. Downloads are not part of
    the estimate.

    Raises
    ------
    GlannError
        If pictures or weights are missing, as in the stages.
    """
    found, reading = _reading(params)
    run = _Run(params, min(found, params.prepare.count or found))
    needs = {"prepare": Need(reading * run.total, None, run.total * run.image_bytes)}
    for name in ("glo", "imle", "sample", "evaluate"):
        say(f"estimate: {name}")
        needs[name] = getattr(run, name)()
    for need in needs.values():
        need.seconds += run.start
        need.memory = None if need.memory is None else need.memory + run.resident
    return needs


def training_seconds(params: Params, n: int) -> float:
    """Return the time that GLO and IMLE take together with `n` training images, from a few timed steps."""
    run = _Run(params, n // (2 if params.prepare.mirror else 1) + params.prepare.holdout)
    return run.glo().seconds + run.imle().seconds


class _Run:
    """A run of which a few steps are timed: a method per stage."""

    def __init__(self, params: Params, total: int):
        process = psutil.Process()
        self.start = time.time() - process.create_time()  # loading Python and torch, which every stage does
        self.params, self.on = params, execution(params.compute)
        self.resident = process.memory_info().rss if self.on.device.type == "cpu" else 0
        self.n = (total - params.prepare.holdout) * (2 if params.prepare.mirror else 1)
        self.total = self.n + params.prepare.holdout
        self.size, self.channels = params.prepare.resolution, params.prepare.channels
        self.image_bytes = self.size**2 * self.channels
        self.architecture = DecoderArchitecture(
            config=params.glo.decoder,
            latent_dim=params.glo.latent_dim,
            size=self.size,
            channels=self.channels,
        )
        decoder = DecoderNetwork(self.architecture)
        self.weights = 4 * sum(p.numel() for p in decoder.parameters())
        imle = params.imle.model_copy(update={"epochs": 1, "index": "Flat", **FROM_SCRATCH})
        with redirect_stderr(io.StringIO()):
            mapping = fit_imle(self._latents(64), imle, 0, self.on).mapping
        self.generator = Generator(mapping, decoder, self.on)

    def _images(self, count: int) -> NDArray[np.uint8]:
        shape = (count, self.size, self.size, self.channels)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def _latents(self, count: int) -> Tensor:
        draws = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(count, self.architecture.latent_dim, generator=draws), dim=1)

    def glo(self) -> Need:
        """Time steps of both parts of the training, and caching the features."""
        # The random images are those of no earlier run.
        glo = self.params.glo.model_copy(update={"start_from": None})
        loss = glo.loss
        images = self._images(BATCHES * glo.batch_size)
        parts = {0.0: 1.0}  # by what `coarse` is timed: its share of the steps
        if loss.kind == "perceptual":
            parts = {coarse: share for coarse, share in ((0.0, 1 - loss.coarse), (1.0, loss.coarse)) if share}
        seconds = 0.0
        for coarse, share in parts.items():
            update = {"coarse": coarse, **self._cache(len(images))}
            config = glo.model_copy(update={"loss": loss.model_copy(update=update)})
            few, many = (
                _seconds(partial(train_glo, images, config.model_copy(update={"epochs": e}), 0, self.on))
                for e in EPOCHS
            )
            per_step = (many - few) / (BATCHES * (EPOCHS[1] - EPOCHS[0]))
            seconds += share * per_step * glo.epochs * self.n / glo.batch_size
        cached = 0.0
        if loss.kind == "perceptual":
            images = self._images(TIMED[1])
            whole = loss.model_copy(update=self._cache(len(images)))
            seconds += self.n * _slope(lambda k: Perceptual(whole, self.on, images[:k]))
            cached = Perceptual(whole, self.on, images).cached_bytes * self.n / len(images)
        memory = memory_of_glo(self.architecture, glo, self.n, glo.batch_size, self.on)
        disk = self.weights + 4 * self.n * glo.latent_dim
        return Need(seconds, memory + cached, disk)

    def _cache(self, count: int) -> dict[str, float]:
        """Return the room for the features of a few images in which they fit if all do in all of the room."""
        return {"cache_gib": self.params.glo.loss.cache_gib * count / self.n}

    def imle(self) -> Need:
        """Time epochs of two numbers of latents, since a search takes longer than in proportion."""
        imle = self.params.imle.model_copy(update=FROM_SCRATCH)
        most = min(self.n, MOST_LATENTS)
        sizes, times = (most // 2, most), []
        for count in sizes:
            latents = self._latents(count)
            one, three = (
                _seconds(partial(fit_imle, latents, imle.model_copy(update={"epochs": e}), 0, self.on))
                for e in (1, 3)
            )
            times.append(max(three - one, 1e-6) / 2)
        needed = max(memory_of_imle(self.n, self.architecture.latent_dim, imle))
        return Need(imle.epochs * _at(self.n, sizes, times), needed, self.weights)

    def sample(self) -> Need:
        """Time drawing."""
        config = self.params.sample
        drawn = config.count + config.interpolations * config.interpolation_steps
        return Need(1 + self._drawing() * drawn, None, 2 * config.count * self.image_bytes)

    def _drawing(self) -> float:
        return _slope(lambda k: self.generator.sample(k))  # noqa: PLW0108

    def evaluate(self) -> Need:
        """Time drawing, computing features, and comparing them."""
        config = self.params.evaluate
        count, rows = min(config.count, self.n), 3 + len(config.priors)
        kind = choose_kind(config.features, config.weights)
        network = feature_network(kind, config.weights, self._images(TIMED[1]), self.on)
        looking = _slope(lambda k: extract(network, self._images(k), "features"))
        compared = min(count, MOST_COMPARED)
        features = torch.randn(compared, len(network(self._images(1))[0]))
        described = Described(features, torch.ones(compared))
        comparing = _seconds(lambda: compare(described, described, prd(features, features, 0)))
        each = comparing * (count / compared) ** 2 + count * (looking + self._drawing())
        held_out = self.params.prepare.holdout * looking
        return Need(2 + rows * each + held_out, None, 64 * rows * self.image_bytes)


def _reading(params: Params) -> tuple[int, float]:
    """Return how many images there are, and the seconds that one takes to prepare."""
    if params.prepare.source not in SOURCES:
        return DOWNLOADED_IMAGES[params.prepare.source], 1e-3
    source = find_images(params.prepare, params.seed)
    found = len(source.items)
    check_enough(found, params.prepare)
    chosen = np.linspace(0, found - 1, min(found, DECODED)).astype(int)
    items = [source.items[i] for i in chosen]
    seconds = _seconds(
        lambda: read_all(items, source.decode, params.prepare, compares(params.prepare))
    ) / len(items)
    processes = (
        processes_that_fit(source.pixels, available(torch.device("cpu"))) if found >= WORTH_PROCESSES else 1
    )
    return found, seconds / processes


def _seconds(work: Callable[[], object]) -> float:
    """Return how long work takes; what it prints is dropped."""
    started = time.monotonic()
    with redirect_stderr(io.StringIO()):
        work()
    return time.monotonic() - started


def _slope(work: Callable[[int], object]) -> float:
    """Return the seconds that each more image takes."""
    _seconds(lambda: work(TIMED[0]))  # what happens only once does not count
    few, many = (_seconds(partial(work, k)) for k in TIMED)
    return max(many - few, 1e-9) / (TIMED[1] - TIMED[0])


def _at(n: int, sizes: tuple[int, int], times: list[float]) -> float:
    """Continue two times to `n` latents: a part grows with their number, the search with its square."""
    small, large = sizes
    if n <= large:
        return times[1]
    square = max(0.0, (times[1] / large - times[0] / small) / (large - small))
    return n * (times[1] / large + square * (n - large))
