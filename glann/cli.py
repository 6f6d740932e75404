"""The `glann` command. Only commands that need torch import it, so that --help is fast."""

import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from glann.errors import GlannError
from glann.params import Params, load_params
from glann.presets import PRESETS, params_yaml, preset
from glann.runtime.settings import LARGEST, Compute
from glann.runtime.tensorboard import check_tensorboard
from glann.runtime.validation import one_line

app = typer.Typer(add_completion=False, rich_markup_mode=None)

UsageError: type[Any] = typer.BadParameter.__mro__[1]  # of click, or of typer's own copy of click


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("an empty path")  # pathlib would take it as the current folder
    return Path(text)


def _path_option(*names: str, help: str) -> Any:
    return typer.Option(*names, help=help, parser=_path, metavar="PATH")


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16")]
Threads = Annotated[int, typer.Option(help="CPU threads")]


def run() -> None:
    """Run the command that `sys.argv` names."""
    try:
        status = app(standalone_mode=False)
    except UsageError as error:
        known = GlannError(f"{error.format_message().rstrip('.')}{_see_help(error)}")
        known.status = error.exit_code
        raise known from None
    finally:
        _flush()  # for output of typer itself, such as --help
    if status == 128 + signal.SIGINT:  # typer's status for Ctrl-C
        raise KeyboardInterrupt
    sys.exit(status)


def _see_help(error: Any) -> str:
    return f"; see: {error.ctx.command_path} --help" if error.ctx else ""


def _write(text: str) -> None:
    """Print text in UTF-8 whatever the encoding of the terminal, since it may become a params.yaml."""
    if sys.stdout is None:
        raise GlannError("standard output: could not be written (it is closed)")
    with _told():
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))  # keeps file names unchanged
        sys.stdout.flush()


def _flush() -> None:
    if sys.stdout is not None:
        with _told():
            sys.stdout.flush()


@contextmanager
def _told() -> Iterator[None]:
    """Report that standard output cannot be written; exit silently if its reader has closed it."""
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at exit
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        raise GlannError(f"standard output: could not be written ({error.strerror})") from None


def _version(wanted: bool) -> None:
    if wanted:
        try:
            _write(importlib.metadata.version("glann") + "\n")
        except importlib.metadata.PackageNotFoundError:
            raise GlannError("version unknown: glann is not installed; run: pip install -e .") from None
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _about(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Image generation without an adversary: GLO, then IMLE. Run the pipeline with `dvc repro`."""
    if context.invoked_subcommand is None:
        _write(context.get_help() + "\n")


@app.command()
def params(
    name: Annotated[str, typer.Option("--preset", help=f"one of {', '.join(PRESETS)}")] = "avatars",
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of the settings")] = False,
    check: Annotated[
        Path | None,
        _path_option(help="check this params.yaml instead, and the pictures and weights it names"),
    ] = None,
) -> None:
    """Print a params.yaml with the settings of a preset, print the schema, or check a file."""
    if check:
        settings = load_params(check)

        from glann import preflight  # noqa: PLC0415

        preflight.check_pictures(settings)
        preflight.check_loss_weights(settings)
        preflight.check_start(settings)
        preflight.check_mapping(settings)
        if settings.compute.tensorboard:
            check_tensorboard(Path(settings.compute.tensorboard))
        preflight.check_evaluation_weights(settings)
    elif schema:
        _write(json.dumps(Params.model_json_schema(), indent=2) + "\n")
    else:
        _write(params_yaml(preset(name)))


@app.command()
def estimate(
    params_file: Annotated[Path, typer.Argument(metavar="PARAMS", help="a params.yaml", parser=_path)] = Path(
        "params.yaml"
    ),
) -> None:
    """Time a few steps of each stage, and print what a whole run takes on this machine."""
    settings = load_params(params_file)

    from glann.estimate import estimate as needs_of  # noqa: PLC0415
    from glann.runtime.progress import duration  # noqa: PLC0415

    needs = needs_of(settings)
    _write(f"{'stage':10}{'time':>12}{'memory':>12}{'results':>12}\n")
    for stage, need in needs.items():
        memory = "" if need.memory is None else f"{need.memory / 2**30:.1f} GiB"
        _write(f"{stage:10}{duration(need.seconds):>12}{memory:>12}{need.disk / 2**20:>8.0f} MiB\n")
    seconds, disk = (sum(getattr(need, name) for need in needs.values()) for name in ("seconds", "disk"))
    _write(f"{'all':10}{duration(seconds):>12}{'':12}{disk / 2**20:>8.0f} MiB\n")


@app.command()
def sample(
    out: Annotated[Path, _path_option(help="a .png (grid), an .npy (array) or a folder (single PNGs)")],
    count: Annotated[int, typer.Option(min=1, max=LARGEST, help="number of images")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="which images to draw")] = 0,
    truncation: Annotated[
        float, typer.Option(min=0.01, max=10, help="below 1: images are more typical and less varied")
    ] = 1.0,
    generator: Annotated[Path, _path_option(help="generator file written by the imle stage")] = Path(
        "data/imle/generator.safetensors"
    ),
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = 2,
) -> None:
    """Draw images from a trained generator."""
    compute = _compute(device, precision, threads)
    if not generator.is_file():
        what = "a folder" if generator.is_dir() else "no such file"
        raise GlannError(f"{generator}: {what}; run dvc repro, or name a file with --generator")

    from glann.sample.generator import Generator  # noqa: PLC0415
    from glann.sample.saving import check_out, save_images  # noqa: PLC0415

    check_out(out)
    save_images(Generator.load(generator, compute).stream(count, seed, truncation), out)
    others = sum(1 for _ in out.iterdir()) - count if out.is_dir() else 0
    beside = f", beside {others} other files that were there before" if others else ""
    print(f"{count} images in {out}{beside}", file=sys.stderr)


@app.command()
def checkpoints(
    folder: Annotated[Path, _path_option(help="the folder of checkpoints")] = Path(".checkpoints"),
    clean: Annotated[bool, typer.Option("--clean", help="delete all of them")] = False,
) -> None:
    """List the checkpoints of interrupted runs, from which dvc repro continues, or delete them."""
    from glann.runtime.checkpoint_files import stored  # noqa: PLC0415

    for checkpoint in stored(folder):
        status = checkpoint.path.stat()
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
        _write(f"{checkpoint.path}  {status.st_size / 2**20:.1f} MiB  {written}  {checkpoint.state}\n")
        if clean:
            checkpoint.path.unlink()
            _write("  deleted\n")


@app.command()
def fit_imle(
    latents: Annotated[Path, typer.Argument(help="a float .npy array [n, d]", parser=_path)],
    out: Annotated[Path, _path_option(help="where to write the mapping, a .safetensors file")],
    params_file: Annotated[
        Path | None, _path_option("--params", help="a params.yaml; its imle section and seed are used")
    ] = None,
    device: Device = "auto",
    threads: Threads = 2,
) -> None:
    """Fit a mapping from noise to your own latents, of any norm."""
    settings = load_params(params_file) if params_file else Params()
    compute = _compute(device, "float32", threads)

    from glann.imle.fit import fit_imle as fit  # noqa: PLC0415
    from glann.runtime.compute import execution  # noqa: PLC0415
    from glann.runtime.files import check_writable  # noqa: PLC0415
    from glann.runtime.npy import load_latents  # noqa: PLC0415

    check_writable(out)
    if out.suffix != ".safetensors":
        raise GlannError(f"--out {out}: name a .safetensors file")
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
        raise GlannError(f"--{one_line(error, Compute)}") from None
