"""The `glann` command. torch is imported by the commands that need it, so that --help is quick."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from glann.config import Compute, Params, load_params, one_line
from glann.errors import GlannError, one_line_errors
from glann.presets import PRESETS, params_yaml, preset

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]
Threads = Annotated[int, typer.Option(help="CPU threads")]


def main() -> None:
    """Run the command line."""
    with one_line_errors():
        app(standalone_mode=True)


@app.callback()
def _about() -> None:
    """Image generation without an adversary: GLO, then IMLE. The pipeline itself runs by `dvc repro`."""


@app.command()
def params(
    name: Annotated[str, typer.Option("--preset", help=f"one of {', '.join(PRESETS)}")] = "avatars",
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema instead")] = False,
    check: Annotated[Path | None, typer.Option(help="check this params.yaml instead")] = None,
) -> None:
    """Print a ready params.yaml, the schema of all its keys, or check one."""
    if check:
        load_params(check)
    elif schema:
        print(json.dumps(Params.model_json_schema(), indent=2))
    else:
        print(params_yaml(preset(name)), end="")


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="a .png (grid), a .npy (array) or a folder (single PNGs)")],
    count: Annotated[int, typer.Option(min=1, help="images")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="which images")] = 0,
    truncation: Annotated[
        float, typer.Option(min=0.01, max=10, help="below 1: more typical, less variety")
    ] = 1.0,
    generator: Annotated[Path, typer.Option(help="the imle stage's result")] = Path(
        "data/imle/generator.safetensors"
    ),
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Draw images from a trained generator."""
    compute = _compute(device, precision, threads)
    if not generator.is_file():
        raise GlannError(f"{generator}: no such file; run dvc repro, or name a file with --generator")

    from glann.generator import Generator  # noqa: PLC0415
    from glann.sample import check_out, save_images  # noqa: PLC0415

    check_out(out)
    save_images(Generator.load(generator, compute).stream(count, seed, truncation), count, out)
    print(f"{count} images in {out}", file=sys.stderr)


@app.command()
def checkpoints(
    folder: Annotated[Path, typer.Option(help="where they are")] = Path(".checkpoints"),
    clean: Annotated[bool, typer.Option("--clean", help="delete them all")] = False,
) -> None:
    """List the checkpoints of interrupted runs, from which the next dvc repro goes on, or delete them."""
    from glann.checkpoints import stored  # noqa: PLC0415

    for checkpoint in stored(folder):
        status = checkpoint.path.stat()
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
        print(f"{checkpoint.path}  {status.st_size / 2**20:.1f} MiB  {written}  {checkpoint.state}")
        if clean:
            checkpoint.path.unlink()
            print("  deleted")


@app.command()
def fit_imle(
    latents: Annotated[Path, typer.Argument(help="a float .npy array [n, d]")],
    out: Annotated[Path, typer.Option(help="the mapping, a .safetensors file")],
    params_file: Annotated[
        Path | None, typer.Option("--params", help="a params.yaml whose imle section and seed are used")
    ] = None,
    device: Device = "auto",
    threads: Threads = 2,
) -> None:
    """Fit a mapping from noise onto latents of your own, of any norm."""
    settings = load_params(params_file) if params_file else Params()
    compute = _compute(device, "float32", threads)

    from glann.compute import execution  # noqa: PLC0415
    from glann.imle import fit_imle as fit  # noqa: PLC0415
    from glann.imle import load_latents  # noqa: PLC0415

    result = fit(load_latents(latents), settings.imle, settings.seed, execution(compute))
    result.mapping.save(out)
    last = result.history[-1]
    print(
        f"mapping in {out}; mean squared distance to the nearest candidate {last['nearest']}", file=sys.stderr
    )


def _compute(device: str, precision: str, threads: int) -> Compute:
    try:
        return Compute(device=device, precision=precision, threads=threads)  # type: ignore[arg-type]
    except ValidationError as error:
        raise GlannError(f"--{one_line(error)}") from None
