"""Commands for photographs, and for editing."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glann.cli.app import Device, Precision, Threads, app, as_path, compute_of, path_option
from glann.cli.model import DEFAULT, DataFolder, GeneratorFile, Weights, check_apart, generator_file
from glann.errors import GlannError

if TYPE_CHECKING:
    from torch import Tensor

    from glann.editing.directions import Direction
    from glann.sample.generator import Generator

MOST_LISTED = 20  # names in a message
MOST_DRAWN = 4096  # images in one picture of edits


@app.command()
def project(
    photos: Annotated[list[Path], typer.Argument(help="pictures, or folders of pictures", parser=as_path)],
    out: Annotated[Path, path_option(help="a folder")],
    generator: GeneratorFile = DEFAULT,
    data: DataFolder = Path("data"),
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Find latents that reproduce photographs (inversion)."""
    compute = compute_of(device, precision, threads)
    generator = generator_file(generator)

    from glann.projection.photos import (  # noqa: PLC0415
        check_out,
        projector_of,
        read_photos,
        save_projection,
    )
    from glann.sample.generator import Generator  # noqa: PLC0415

    check_apart(out)
    check_out(out, photos)
    model = Generator.load(generator, compute)
    names, pictures = read_photos(photos, model.decoder.architecture)
    found = projector_of(model, data, weights).project(pictures)
    save_projection(out, names, pictures, found)
    marks = [False] * len(names) if found.foreign is None else found.foreign
    foreign = [name for name, mark in zip(names, marks, strict=True) if mark]
    told = f"; unlike anything that the model knows: {', '.join(foreign[:5])}" if foreign else ""
    if found.foreign is None:
        told = "; without hold-out images, it is not known whether they are foreign to the model"
    print(f"{_counted(len(names), 'picture')} in {out}{told}", file=sys.stderr)


@app.command()
def direction(
    out: Annotated[Path, path_option(help="where to write directions, a .safetensors file")],
    has: Annotated[
        Path | None, path_option("--with", help="folder of pictures with the property, or latents .npy")
    ] = None,
    has_not: Annotated[
        Path | None, path_option("--without", help="folder of pictures without it, or latents .npy")
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="instead of examples: a class of the training images in --data"),
    ] = None,
    name: Annotated[str, typer.Option(help="name of the property; default: the class, or learned")] = "",
    kind: Annotated[str, typer.Option(help="without examples: principal or sensitive")] = "sensitive",
    count: Annotated[int, typer.Option(min=1, max=1000, help="without examples: how many")] = 8,
    generator: GeneratorFile = DEFAULT,
    data: DataFolder = Path("data"),
    weights: Weights = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Find directions in latent space, from examples or without."""
    compute = compute_of(device, precision, threads)
    generator = generator_file(generator)
    if (has is None) != (has_not is None):
        raise GlannError("--with, --without: name both, or neither")
    if has and class_name is not None:
        raise GlannError("--class: give a class or examples, not both")
    name = name or class_name or "learned"
    if kind not in ("principal", "sensitive"):
        raise GlannError(f"--kind {kind[:60]}: use principal or sensitive")
    if out.suffix != ".safetensors":
        raise GlannError(f"--out {out}: name a .safetensors file")
    if not name.isprintable() or "," in name or "=" in name or not name.strip():
        raise GlannError("--name: give the direction a name without commas and equals signs")
    check_apart(out)

    from glann.editing import directions as found_by  # noqa: PLC0415
    from glann.runtime.files import check_writable  # noqa: PLC0415
    from glann.sample.generator import Generator  # noqa: PLC0415

    check_writable(out)
    found_by.check_replaceable(out)
    model = Generator.load(generator, compute)
    latents = model.sample_latents(found_by.SAMPLES)
    if class_name is not None or (has and has_not):
        if has and has_not:
            both = _examples(model, [has, has_not], data, weights)
        else:
            both = _of_class(model, str(class_name), data)
        found = [found_by.learned(name, both[0], both[1], latents)]
        share = found_by.told_apart(both[0], both[1])
        print(
            f"{name}: {len(both[0])} examples with, {len(both[1])} without; others of their kind are told "
            f"apart in {100 * share:.0f} % of cases (by chance: 50 %)",
            file=sys.stderr,
        )
    elif kind == "principal":
        found = found_by.principal(latents, count)
    else:
        found = found_by.sensitive(model, latents, count)
    found_by.save_directions(out, found, model)
    print(f"{_counted(len(found), 'direction')} in {out}", file=sys.stderr)


@app.command()
def edit(
    directions: Annotated[list[Path], typer.Argument(help="files of glann direction", parser=as_path)],
    out: Annotated[Path, path_option(help="a .png")],
    latents: Annotated[
        Path | None, path_option(help="latents .npy, e.g. of glann project; default: samples")
    ] = None,
    seeds: Annotated[str, typer.Option(help="without --latents: the first images of these seeds")] = "0,1,2",
    strength: Annotated[
        float, typer.Option(min=0.01, max=20, help="how far to go both ways, in standard deviations")
    ] = 2.0,
    steps: Annotated[int, typer.Option(min=2, max=100, help="pictures per strip")] = 7,
    together: Annotated[
        str, typer.Option(help='apply several at once instead of strips, e.g. "smile=2,glasses=-1"')
    ] = "",
    generator: GeneratorFile = DEFAULT,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Move images along directions, and draw strips: a row per image and direction."""
    compute = compute_of(device, precision, threads)
    generator = generator_file(generator)
    if out.suffix.lower() != ".png":
        raise GlannError(f"--out {out}: use a name ending in .png")
    check_apart(out)

    import torch  # noqa: PLC0415

    from glann.editing.directions import labelled, load_directions, move, strips  # noqa: PLC0415
    from glann.images.png import grid, save_png  # noqa: PLC0415
    from glann.runtime.files import check_writable  # noqa: PLC0415
    from glann.sample.animation import seeds_of  # noqa: PLC0415
    from glann.sample.generator import Generator  # noqa: PLC0415

    check_writable(out)
    chosen = [] if latents else seeds_of(seeds)
    model = Generator.load(generator, compute)
    known = [direction for path in directions for direction in load_directions(path, model)]
    names = [direction.name for direction in known]
    if len(set(names)) < len(names):
        raise GlannError(f"directions: two have the same name; there are: {_listed(names)}")
    if latents:
        rows = _load_latents(latents, model).cpu()
    else:
        rows = torch.cat([model.sample_latents(1, seed).cpu() for seed in chosen])
    columns = 2 if together else steps
    if len(rows) * len(known) * columns > MOST_DRAWN:
        raise GlannError(f"--out {out}: more than {MOST_DRAWN:,} images; give fewer latents or directions")
    if together:
        strengths = _strengths(together, known)
        images = model.decode(torch.stack([rows, move(rows, known, strengths)], dim=1).flatten(0, 1))
        save_png(out, grid(images, columns))
        done = f"before and after {together}"
    else:
        at = torch.linspace(-strength, strength, steps).tolist()
        save_png(out, labelled(strips(model, rows, known, at), names, at))
        done = f"along {_listed(names)}"
    print(f"{_counted(len(rows), 'image')} {done}, in {out}", file=sys.stderr)


def _listed(names: "list[str]") -> str:
    return ", ".join(names[:MOST_LISTED]) + ", ..." * (len(names) > MOST_LISTED)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _strengths(text: str, known: "list[Direction]") -> list[float]:
    """Return a strength for each direction from "smile=2,glasses=-1"; 0 for those that are not named."""
    wanted = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        if name.strip() in wanted:
            raise GlannError(f"--together {text[:60]}: {name.strip()} is there twice")
        try:
            wanted[name.strip()] = float(value)
            if not abs(wanted[name.strip()]) <= 100:
                raise ValueError
        except ValueError:
            raise GlannError(f'--together {text[:60]}: expected e.g. "smile=2,glasses=-1"') from None
    names = [direction.name for direction in known]
    if unknown := wanted.keys() - set(names):
        raise GlannError(f"--together: no direction {min(unknown)[:60]!r}; there are: {_listed(names)}")
    return [wanted.get(name, 0.0) for name in names]


def _examples(model: "Generator", paths: list[Path], data: Path, weights: Path | None) -> "list[Tensor]":
    """Return the latents in each file, or of the photographs in each folder."""
    from glann.projection.photos import projector_of, read_photos  # noqa: PLC0415

    if all(path.suffix == ".npy" for path in paths):
        return [_load_latents(path, model) for path in paths]
    projector = projector_of(model, data, weights)

    def latents_of(path: Path) -> "Tensor":
        if path.suffix == ".npy":
            return _load_latents(path, model)
        return projector.project(read_photos([path], model.decoder.architecture)[1]).latents

    return [latents_of(path) for path in paths]


def _of_class(model: "Generator", name: str, data: Path) -> "list[Tensor]":
    """Return the latents of the training images of a class, and those of all others."""
    import torch  # noqa: PLC0415

    from glann.images.classes import load_classes  # noqa: PLC0415
    from glann.runtime.npy import load_latents  # noqa: PLC0415

    classes = load_classes(data / "prepare/classes.json")
    latents = load_latents(data / "glo/latents.npy", model.decoder.architecture.latents)
    if classes is None:
        raise GlannError(f"--class {name[:60]}: the training images in {data} have no classes")
    if name not in classes.names:
        raise GlannError(f"--class: no class {name[:60]!r}; there are: {_listed(classes.names)}")
    if len(classes.images) != len(latents):
        raise GlannError(
            f"{data}: classes of {len(classes.images)} images, but {len(latents)} latents; run: dvc repro"
        )
    of_class = torch.from_numpy(classes.images == classes.names.index(name))
    return [latents[of_class], latents[~of_class]]


def _load_latents(path: Path, model: "Generator") -> "Tensor":
    from glann.runtime.npy import load_latents  # noqa: PLC0415

    rows, d = load_latents(path), model.decoder.architecture.latent_dim
    if rows.shape[1] != d:
        raise GlannError(f"{path}: latents of {rows.shape[1]} numbers, but those of this model have {d}")
    if not rows.isfinite().all() or not rows.norm(dim=1).min() > 0:
        raise GlannError(f"{path}: a latent is zero or not finite")
    return rows
