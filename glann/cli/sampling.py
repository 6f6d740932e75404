"""Commands that draw samples."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glann.cli.app import Device, Precision, Threads, app, compute_of, path_option
from glann.cli.model import DEFAULT, ClassName, GeneratorFile, Truncation, check_apart, generator_file
from glann.errors import GlannError
from glann.runtime.settings import LARGEST

if TYPE_CHECKING:
    from glann.sample.generator import Generator

MOST_FRAMES = 10_000  # pictures of an animation


@app.command()
def sample(
    out: Annotated[Path, path_option(help="a .png (grid), an .npy (array) or a folder (single PNGs)")],
    count: Annotated[int, typer.Option(min=1, max=LARGEST, help="number of images")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="which images to draw")] = 0,
    truncation: Truncation = 1.0,
    class_name: ClassName = None,
    generator: GeneratorFile = DEFAULT,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Draw images from a trained generator."""
    compute = compute_of(device, precision, threads)
    generator = generator_file(generator)

    from glann.sample.generator import Generator  # noqa: PLC0415
    from glann.sample.saving import check_out, save_images  # noqa: PLC0415

    check_out(out)
    model = Generator.load(generator, compute)
    _check_truncation(truncation, model)
    save_images(model.stream(count, seed, truncation, class_name), out)
    others = sum(1 for _ in out.iterdir()) - count if out.is_dir() else 0
    beside = f", beside {others} other files that were there before" if others else ""
    print(f"{count} images in {out}{beside}", file=sys.stderr)


@app.command()
def walk(
    out: Annotated[Path, path_option(help="a .webp, .gif or .mp4")],
    seeds: Annotated[str, typer.Option(help="samples to visit: the first images of these seeds")] = "0,1,2,3",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="pictures from one to the next")] = 30,
    rate: Annotated[float, typer.Option(min=1, max=60, help="pictures per second")] = 20,
    truncation: Truncation = 1.0,
    class_name: ClassName = None,
    generator: GeneratorFile = DEFAULT,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Animate the way from one sample to the next."""
    compute = compute_of(device, precision, threads)
    generator = generator_file(generator)

    from glann.runtime.files import check_writable  # noqa: PLC0415
    from glann.sample.animation import check_ending, save_animation, seeds_of  # noqa: PLC0415
    from glann.sample.animation import walk as frames_of  # noqa: PLC0415
    from glann.sample.generator import Generator  # noqa: PLC0415

    chosen = seeds_of(seeds)
    if len(chosen) * steps > MOST_FRAMES:
        raise GlannError(f"--seeds, --steps: more than {MOST_FRAMES:,} pictures; visit fewer, or take fewer")
    check_apart(out)
    check_ending(out, rate)
    check_writable(out)
    model = Generator.load(generator, compute)
    _check_truncation(truncation, model)
    frames = frames_of(model, chosen, steps, truncation, class_name)
    save_animation(out, frames, rate)
    print(f"{len(frames)} pictures, {len(frames) / rate:.3g} s, in {out}", file=sys.stderr)


def _check_truncation(truncation: float, model: "Generator") -> None:
    if truncation != 1 and model.mapping.architecture.config is None:
        raise GlannError(
            "--truncation: this model has no mapping: its decoder draws noise of any length in the same way; "
            "leave the option out"
        )
