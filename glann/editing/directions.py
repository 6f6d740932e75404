"""Directions in latent space: found without examples, or learned from them.

Principal directions are those of GANSpace (Härkönen et al., NeurIPS 2020, arXiv:2004.02546). Sensitive ones
are the singular vectors of the decoder's Jacobian, as in Ramesh, Choi & LeCun (arXiv:1812.01161), averaged
over latents. Learned ones are the normals of a linear classifier, as in InterFaceGAN (Shen et al., CVPR 2020,
arXiv:1907.10786).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from glann.errors import DamagedFileError, GlannError
from glann.images.png import as_picture, grid
from glann.images.tensors import thumbnails
from glann.runtime.progress import progress
from glann.runtime.tensors import digest_of, load_config, load_tensors, on_cpu, save_tensors
from glann.sample.generator import Generator

SAMPLES = 4096  # from which directions and their spreads are measured
BASES = 64  # latents at which the decoder's sensitivity is measured
SMALL_STEP = 0.25  # standard deviations, for finite differences
COMPARED_SIDE = 32  # px
FEWEST, FOLDS = 5, 5  # examples of a kind, and parts for cross-validation
FONT_SIZE = 12  # px
REGULARISATION = 0.1  # of the classifier: smaller values shrink its weights more


@dataclass(frozen=True)
class Direction:
    """A direction in the latent space of one decoder.

    Attributes
    ----------
    name
        What changes along it.
    vector
        float32 [d] of unit length.
    spread
        Standard deviation of the model's samples along it; strengths are multiples of it.
    """

    name: str
    vector: Tensor
    spread: float


def principal(latents: Tensor, count: int) -> list[Direction]:
    """Return the directions in which latents float32 [n, d] vary most, in decreasing order."""
    centred = latents - latents.mean(dim=0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    spreads = sizes / len(latents) ** 0.5
    return [
        Direction(f"principal {i + 1}", _signed(axis), float(spread))
        for i, (axis, spread) in enumerate(zip(axes[:count], spreads[:count], strict=True))
    ]


def sensitive(generator: Generator, latents: Tensor, count: int) -> list[Direction]:
    """Return the directions along which drawn pictures change most per standard deviation of the latents.

    Parameters
    ----------
    generator
        The model.
    latents
        float32 [n, d]: samples, of which the first 64 are moved.
    count
        Number of directions, at most d.
    """
    bases = F.normalize(latents[:BASES], dim=1).cpu()
    centred = (latents - latents.mean(dim=0)).cpu()
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    moves = axes * (sizes / len(latents) ** 0.5)[:, None]  # [d, d]: principal directions, one deviation long
    total = torch.zeros(len(moves), len(moves))
    with progress("directions", len(bases), "latents") as advance:
        for base in bases:
            moved = torch.cat([base + SMALL_STEP * moves, base - SMALL_STEP * moves])
            both = generator.decode(moved, title=None)
            forward, backward = thumbnails(both, COMPARED_SIDE).chunk(2)
            change = (forward - backward) / (2 * SMALL_STEP)  # => [d, pixels]
            total += change @ change.T
            advance(1)
    _, vectors = torch.linalg.eigh(total)
    mixed = vectors.flip(1)[:, :count].T @ moves  # => [count, d]
    return [_direction(f"sensitive {i + 1}", _signed(vector), latents) for i, vector in enumerate(mixed)]


def learned(name: str, has: Tensor, has_not: Tensor, latents: Tensor) -> Direction:
    """Return the direction that tells two sets of latents apart: the normal of a logistic regression.

    Parameters
    ----------
    name
        What the first set has, and the second has not.
    has, has_not
        float32 [a, d] and [b, d].
    latents
        float32 [n, d]: samples of the model, which say how far a standard deviation is.

    Raises
    ------
    GlannError
        If a set has fewer than 5 rows, or if both are the same.
    """
    if min(len(has), len(has_not)) < FEWEST:
        raise GlannError(
            f"{name}: needs {FEWEST} or more examples of both kinds, found {len(has)} and {len(has_not)}"
        )
    rows, wanted = _examples(has, has_not)
    scaler, classifier = _classifier().fit(rows, wanted)
    normal = classifier.coef_[0] / scaler.scale_
    if not np.abs(normal).max() > 0:
        raise GlannError(f"{name}: the examples of both kinds are the same; use others")
    return _direction(name, torch.from_numpy(normal).float(), latents)


def told_apart(has: Tensor, has_not: Tensor) -> float:
    """Return how well examples of one kind are told from those of the other, by others of the same kinds.

    Returns
    -------
    float
        The mean of the shares of both kinds that are recognised, cross-validated: .5 by chance, 1 at best.
    """
    from sklearn.model_selection import cross_val_score  # noqa: PLC0415 (takes a second)

    rows, wanted = _examples(has, has_not)
    parts = min(FOLDS, len(has), len(has_not))
    scores = cross_val_score(_classifier(), rows, wanted, cv=parts, scoring="balanced_accuracy")
    return float(scores.mean())


def _examples(has: Tensor, has_not: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all examples on the sphere, and 1 for each that has the property, 0 for the others."""
    rows = F.normalize(torch.cat([has, has_not]).cpu(), dim=1).numpy()
    return rows, np.repeat([1, 0], [len(has), len(has_not)])


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 (takes a second)
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    linear = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), linear)


def _direction(name: str, vector: Tensor, latents: Tensor) -> Direction:
    unit = F.normalize(vector.float().cpu(), dim=0)
    return Direction(name, unit, float((latents.cpu() @ unit).std()))


def _signed(vector: Tensor) -> Tensor:
    """Turn a vector so that its largest coordinate is positive: its sign is arbitrary otherwise."""
    return (vector * vector[vector.abs().argmax()].sign()).cpu()


def move(latents: Tensor, directions: Sequence[Direction], strengths: Sequence[float]) -> Tensor:
    """Move latents along several directions at once.

    Parameters
    ----------
    latents
        float32 [n, d]; they are normalised first.
    directions, strengths
        Which way, and how many standard deviations.

    Returns
    -------
    Tensor
        float32 [n, d] of unit length.
    """
    moved = F.normalize(latents, dim=1)
    for direction, strength in zip(directions, strengths, strict=True):
        moved = moved + strength * direction.spread * direction.vector.to(moved)
    return F.normalize(moved, dim=1)


def strips(
    generator: Generator, latents: Tensor, directions: Sequence[Direction], strengths: Sequence[float]
) -> NDArray[np.uint8]:
    """Draw latents float32 [n, d] along each direction: uint8 [n, directions, strengths, h, w, c]."""
    moved = [move(latents, [direction], [at]) for direction in directions for at in strengths]
    rows = torch.stack(moved, dim=1).flatten(0, 1)  # => [n * directions * strengths, d]
    images = generator.decode(rows)
    return images.reshape(len(latents), len(directions), len(strengths), *images.shape[1:])


def labelled(
    images: NDArray[np.uint8], names: Sequence[str], strengths: Sequence[float]
) -> NDArray[np.uint8]:
    """Lay strips out with the name of the direction before each row, and the strengths above.

    Parameters
    ----------
    images
        uint8 [n, directions, strengths, h, w, c], from `strips`.
    names, strengths
        Of the directions, and how far they were followed.

    Returns
    -------
    NDArray
        uint8 [height, width, c].
    """
    channels = images.shape[-1]
    blocks = [as_picture(grid(block.reshape(-1, *images.shape[3:]), len(strengths))) for block in images]
    font = ImageFont.load_default(FONT_SIZE)
    left = max(round(font.getlength(name)) for name in names) + 2 * FONT_SIZE
    gap, (width, height) = 2 * FONT_SIZE, blocks[0].size
    canvas = Image.new("L" if channels == 1 else "RGB", (left + width, len(blocks) * (height + gap)), "white")
    pen = ImageDraw.Draw(canvas)
    for number, block in enumerate(blocks):
        top = gap + number * (height + gap)
        canvas.paste(block, (left, top))
        for i, strength in enumerate(strengths):
            middle = left + (i + 0.5) * width / len(strengths)
            pen.text(
                (middle, top - FONT_SIZE / 2), f"{round(strength, 1) + 0.0:+.1f}", "black", font, anchor="ms"
            )
        for i, name in enumerate(names):
            middle = top + (i + 0.5) * height / len(names)
            pen.text((left - FONT_SIZE, middle), name, "black", font, anchor="rm")
    return np.asarray(canvas).reshape(canvas.height, canvas.width, channels)


def save_directions(path: Path, directions: Sequence[Direction], generator: Generator) -> None:
    """Write directions, and to which model they belong, as a safetensors file."""
    tensors = {
        "vectors": torch.stack([direction.vector for direction in directions]),
        "spreads": torch.tensor([direction.spread for direction in directions]),
    }
    names = [direction.name for direction in directions]
    save_tensors(path, tensors, {"names": names, "decoder": _digest(generator)})


def _digest(generator: Generator) -> str:
    return digest_of(on_cpu(generator.decoder.state_dict()), None)


def load_directions(path: Path, generator: Generator) -> list[Direction]:
    """Read a file of `save_directions`.

    Raises
    ------
    GlannError
        If the file is missing, damaged, something else, or belongs to another model.
    """
    tensors, config = load_tensors(path)
    damaged = DamagedFileError(path, "holds no directions; make some with glann direction")
    if not _are_directions(config) or not {"vectors", "spreads"} <= tensors.keys():
        raise damaged
    names, vectors, spreads = config["names"], tensors["vectors"], tensors["spreads"]
    if config["decoder"] != _digest(generator):
        raise GlannError(f"{path}: directions of another model; make them with glann direction")
    shape = (len(names), generator.decoder.architecture.latent_dim)
    numbers = vectors.is_floating_point() and spreads.is_floating_point()
    if not numbers or vectors.shape != shape or spreads.shape != shape[:1] or not len(names):
        raise damaged
    if not (vectors.isfinite().all() and spreads.isfinite().all()):
        raise damaged
    rows = zip(names, vectors.float(), spreads.tolist(), strict=True)
    return [Direction(name, vector, spread) for name, vector, spread in rows]


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that holds something else than directions, such as a generator.

    Raises
    ------
    GlannError
        If so.
    """
    if not path.exists():
        return
    try:
        if _are_directions(load_config(path)):
            return
    except GlannError:
        pass
    raise GlannError(f"--out {path}: holds something else; use another name")


def _are_directions(config: Any) -> bool:
    return (
        isinstance(config, dict)
        and config.keys() == {"names", "decoder"}
        and isinstance(config["names"], list)
        and all(isinstance(name, str) for name in config["names"])
    )
