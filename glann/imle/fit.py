"""IMLE in latent space: noise is mapped to latents by nearest-neighbour matching (arXiv:1809.09087)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glann.errors import GlannError
from glann.imle.calibration import ROWS_IN_FLOAT64, calibrate, fit_range
from glann.imle.matching import CANDIDATES_AT_ONCE, Matching, candidate_count, groups_of
from glann.imle.settings import Imle
from glann.imle.step import ImleStep
from glann.neighbors.search import checked_index, reserved_bytes
from glann.networks.generator import load_mapping
from glann.networks.layers import initialize
from glann.networks.mappings.network import LONGEST, MappingArchitecture, MappingNetwork
from glann.runtime.compute import Execution
from glann.runtime.memory import check_memory
from glann.runtime.processes import rank, ranks
from glann.runtime.randomness import noise_rows, stream
from glann.runtime.settings import MOST_CLASSES
from glann.training.batches import read_ahead
from glann.training.checkpoints import Checkpoints
from glann.training.course import Course
from glann.training.optimization import MovingAverage, adam
from glann.training.replay import Replay
from glann.training.shards import Shard
from glann.training.state import Parts
from glann.training.watch import SHOWN, Watch

SMALLEST = 1e-15  # if the largest latent coordinate is smaller, squares underflow in float32
REMEDY = "lower imle.lr, or clip gradients by imle.parameter_groups"


@dataclass
class ImleResult:
    """A fitted mapping.

    Attributes
    ----------
    mapping
        The moving average of the mapping, in evaluation mode.
    history
        Per epoch: its number, counted from 1, the regression loss, and the mean squared distance from a
        latent to its nearest candidate. Distances are in units of the latents' norm or spread.
    """

    mapping: MappingNetwork
    history: list[dict[str, float]]


def fit_imle(
    latents: Tensor,
    config: Imle,
    seed: int,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
    watch: Watch | None = None,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> ImleResult:
    """Fit the mapping: draw noise, map it, find each latent's nearest candidate, regress (GLANN, section 3).

    With labels, the mapping is conditional: it also reads a class, and latents are matched with candidates of
    their own class.

    In a group of processes, each matches and regresses its share of the latents; all share the candidates.

    Parameters
    ----------
    latents
        float [n, d], of any norm; all of them on every process.
    config
        The `imle` section of params.yaml.
    seed
        Seed of every random draw.
    execution
        Device and precision. Candidates are mapped and compared in this precision; the regression always
        runs in float32, since its batches are too small to gain from less.
    checkpoints
        Where to resume from and save to. None: neither.
    watch
        Shows samples while the fit runs; it must know how to decode latents. None: nothing does.
    labels
        int64 [n]: the class of each latent, a number from 0 on. None: there are no classes, and
        `config.conditional` must be false.
    class_names
        Their names. Default: their numbers.

    Raises
    ------
    GlannError
        If there are fewer than 2 latents, one is not finite, the index cannot be built for them, labels do
        not fit, there is not enough memory, or the loss stops being finite.
    """
    n, d = latents.shape
    classes = _classes(n, config, labels, class_names)
    labels = labels.to(latents.device) if classes and labels is not None else None
    groups = groups_of(config, n, labels)
    _check(latents, candidate_count(config, n))
    for count in {group.count for group in groups}:
        checked_index(config.index, count, d)
    _check_memory(n, d, len(classes), config, execution)
    shard = Shard(n, config.batch_size, rank(), ranks())
    mapping = MappingNetwork(
        MappingArchitecture(
            config=config.mapping,
            noise_dim=config.noise_dim,
            latent_dim=d,
            classes=[*classes],
            class_counts=[*classes.values()],
        )
    )
    if config.start_from is None:
        initialize(mapping, stream(seed, "imle", "mapping"))
    else:
        mapping.network.load_state_dict(load_start(config, d, [*classes]).network.state_dict())
    fit_range(mapping.to(latents.device), latents)
    mapping.to(execution.device)
    average = MovingAverage(mapping, config.ema)
    optimizer = adam(mapping.network, config.lr, config.parameter_groups)
    wanted = mapping.to_unit(latents[shard.start : shard.stop].to(execution.device, torch.float32))
    own = None if labels is None else labels[shard.start : shard.stop].to(execution.device)
    matching = Matching(wanted, shard, groups, config, seed, execution)
    shown = [noise_rows(0, SHOWN, config.noise_dim, seed, "imle", "watch").to(execution.device)]
    if classes:
        shown.append(torch.arange(SHOWN, device=execution.device) * min(len(classes), SHOWN) // SHOWN)
    step = ImleStep(wanted, own, matching, mapping, optimizer, average, config)
    take_step = Replay(step, optimizer, execution)
    parts: Parts = {"mapping": mapping, "average": average, "optimizer": optimizer, "matching": matching}

    with Course(
        "imle",
        "latents",
        parts,
        shard,
        config.epochs,
        config.schedule,
        checkpoints,
        REMEDY,
        cycle=n * config.refresh,
    ) as course:
        for epoch in course.epochs():
            if epoch % config.refresh == 0 and course.at_start_of_epoch:
                matching.renew(mapping, epoch)
            mapping.train()
            for x in read_ahead(step.read, course.batches(seed), execution):
                loss = take_step(x)
                course.step(loss, len(x["rows"]))
                if watch and watch.due():
                    watch.look(average.module, shown, course.history, course.done, execution)
            course.end_epoch(nearest=matching.distance)
            if watch:
                watch.note(course.history[-1])

    fitted = average.module
    assert isinstance(fitted, MappingNetwork)
    calibrate(fitted, latents, groups, config, seed, execution)
    if watch and watch.begun:
        watch.look(fitted, shown, course.history, 1.0, execution)
    return ImleResult(fitted.eval(), course.history)


def _classes(n: int, config: Imle, labels: Tensor | None, names: Sequence[str] | None) -> dict[str, int]:
    """Return the name of each class and the number of its latents; empty if there are no labels."""
    if labels is None:
        if config.conditional:
            raise GlannError("imle.conditional: there are no labels; give some, or set it to false")
        return {}
    if labels.shape != (n,) or labels.dtype != torch.int64:
        found = f"{str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}"
        raise GlannError(f"labels: expected int64 [{n}], one per latent, found {found}")
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise GlannError(f"labels: use numbers from 0 to {MOST_CLASSES - 1:,}")
    counts = labels.bincount(minlength=len(names or ())).tolist()
    if 0 in counts:
        raise GlannError(f"labels: class {counts.index(0)} has no latents; number classes without gaps")
    known = [str(name) for name in names or range(len(counts))]
    if len({*known}) != len(counts):
        raise GlannError(f"class_names: {len({*known})} different names of {len(counts)} classes")
    if wrong := next((name for name in known if not name.isprintable() or not 0 < len(name) <= LONGEST), ""):
        raise GlannError(f"class_names: {wrong[:60]!r}: use 1 to {LONGEST} printable letters")
    return dict(zip(known, counts, strict=True))


def load_start(config: Imle, latent_dim: int, classes: Sequence[str] | None = None) -> MappingNetwork:
    """Read the mapping that `config.start_from` names, which must have these classes. None: any.

    Raises
    ------
    GlannError
        If the file is missing, damaged or something else, or if the mapping is of another kind or size.
    """
    assert config.start_from
    try:
        earlier = load_mapping(config.start_from)
    except GlannError as error:
        raise GlannError(
            f"imle.start_from: {error}; name a generator.safetensors or a mapping's own file"
        ) from None
    found = earlier.architecture
    if found.config is None:
        raise GlannError(f"imle.start_from: {config.start_from} has no mapping; name a model of imle")
    keys: dict[str, tuple[object, object]] = {
        "imle.noise_dim": (found.noise_dim, config.noise_dim),
        "glo.latent_dim": (found.latent_dim, latent_dim),
        "imle.mapping.kind": (found.config.kind, config.mapping.kind),
        "imle.mapping.width": (found.config.width, config.mapping.width),
        "imle.mapping.depth": (found.config.depth, config.mapping.depth),
    }
    conditional = config.conditional if classes is None else bool(classes)
    keys["imle.conditional"] = (bool(found.classes), conditional)
    if classes is not None and found.classes != [*classes]:
        keys["classes"] = (_listed(found.classes), _listed(classes))
    other = [
        f"{key} {theirs}, not {ours}"
        for key, (theirs, ours) in keys.items()
        if theirs != ours or key == "classes"
    ]
    if other:
        raise GlannError(f"imle.start_from: {config.start_from} has {', '.join(other)}; set the same")
    return earlier


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)[:100]} ({len(names)})" if names else "none"


def _check(latents: Tensor, count: int) -> None:
    if len(latents) < 2 or not latents.isfinite().all():
        raise GlannError("latents: imle needs 2 or more rows of finite numbers")
    largest = float(latents.abs().max())
    if largest and not SMALLEST < largest < 1 / SMALLEST:
        raise GlannError(f"latents: the largest number is {largest:g}; scale them to about 1 first")
    if ranks() > 1 and count < 2 * ranks():
        raise GlannError(
            f"imle.candidates: {count} draws for {len(latents)} latents are too few for {ranks()} processes; "
            "raise it, or lower compute.processes"
        )


def memory_of_imle(n: int, d: int, config: Imle, classes: int = 0) -> tuple[int, int]:
    """Return the bytes that a fit needs on a device: during the training, and for what is measured after it.

    Parameters
    ----------
    n, d
        Number and size of the latents.
    config
        The `imle` section of params.yaml.
    classes
        Number of classes of a conditional mapping.
    """
    count = candidate_count(config, n)
    held = 4 * n * (d + 2 * config.noise_dim) + 4 * 4 * classes * d**2
    candidates = 4 * min(count, CANDIDATES_AT_ONCE) * (d + config.noise_dim)
    if config.index != "Flat":  # joined, and in blocks or the index, which has two numbers per link
        links = checked_index(config.index, count, d).links
        candidates = 4 * count * (2 * d + config.noise_dim + 2 * links)
    samples = (
        4 * CANDIDATES_AT_ONCE * (d + config.noise_dim) * (config.correct_moments or config.residuals > 0)
    )
    moments_of_them = 8 * (8 * d**2 + 4 * ROWS_IN_FLOAT64 * d) * config.correct_moments
    return held + candidates, held + samples + moments_of_them


def _check_memory(n: int, d: int, classes: int, config: Imle, execution: Execution) -> None:
    fitting, measuring = memory_of_imle(n, d, config, classes)
    reserved = reserved_bytes(execution.device)
    fitting, measuring = fitting + reserved, measuring + reserved
    knobs = f"imle.candidates ({config.candidates:g}), imle.noise_dim ({config.noise_dim})"
    check_memory("imle", fitting, execution, f"{knobs} or the number of latents ({n})")
    knobs = f"glo.latent_dim ({d}) or set imle.correct_moments to false"
    check_memory("imle", measuring, execution, knobs)
