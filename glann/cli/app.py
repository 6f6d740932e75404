"""The `glann` command: what all its commands share."""

import importlib.metadata
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from glann.errors import GlannError
from glann.runtime.settings import Compute
from glann.runtime.validation import one_line

app = typer.Typer(add_completion=False, rich_markup_mode=None)

UsageError: type[Any] = typer.BadParameter.__mro__[1]  # of click, or of typer's own copy of click


def as_path(text: str) -> Path:
    """Return a path of the command line."""
    if not text:
        raise typer.BadParameter("an empty path")  # pathlib would take it as the current folder
    return Path(text)


def path_option(*names: str, help: str) -> Any:
    """Return an option that is a path."""
    return typer.Option(*names, help=help, parser=as_path, metavar="PATH")


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


def write(text: str) -> None:
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
            write(importlib.metadata.version("glann") + "\n")
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
        write(context.get_help() + "\n")


def compute_of(device: str, precision: str, threads: int) -> Compute:
    """Return the settings that the options of a command name."""
    try:
        return Compute(device=device, precision=precision, threads=threads)  # type: ignore[arg-type]
    except ValidationError as error:
        raise GlannError(f"--{one_line(error, Compute)}") from None
