"""Commands around a run of the pipeline: its settings, what it takes, its checkpoints."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from glann.cli.app import app, as_path, path_option, write
from glann.params import Params, load_params, load_settings
from glann.peers.settings import Peers
from glann.presets import PRESETS, commented_yaml, params_yaml, preset
from glann.runtime.tensorboard import check_tensorboard


@app.command()
def params(
    name: Annotated[str, typer.Option("--preset", help=f"one of {', '.join(PRESETS)}")] = "avatars",
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of the settings")] = False,
    peers: Annotated[bool, typer.Option("--peers", help="print or check a peers/params.yaml")] = False,
    check: Annotated[
        Path | None,
        path_option(help="check this params.yaml instead, and the pictures and weights it names"),
    ] = None,
) -> None:
    """Print a params.yaml with the settings of a preset, print the schema, or check a file."""
    if check and peers:
        load_settings(check, Peers)
    elif check:
        settings = load_params(check)

        from glann import preflight  # noqa: PLC0415

        preflight.check_pictures(settings)
        preflight.check_classes(settings)
        preflight.check_loss_weights(settings)
        preflight.check_start(settings)
        preflight.check_mapping(settings)
        if settings.compute.tensorboard:
            check_tensorboard(Path(settings.compute.tensorboard))
        preflight.check_evaluation_weights(settings)
    elif schema:
        write(json.dumps(Params.model_json_schema(), indent=2) + "\n")
    elif peers:
        write(commented_yaml(Peers()))
    else:
        write(params_yaml(preset(name)))


@app.command()
def estimate(
    params_file: Annotated[
        Path, typer.Argument(metavar="PARAMS", help="a params.yaml", parser=as_path)
    ] = Path("params.yaml"),
) -> None:
    """Time a few steps of each stage, and print what a whole run takes on this machine."""
    settings = load_params(params_file)

    from glann.estimate import estimate as needs_of  # noqa: PLC0415
    from glann.runtime.progress import duration  # noqa: PLC0415

    needs = needs_of(settings)
    write(f"{'stage':10}{'time':>12}{'memory':>12}{'results':>12}\n")
    for stage, need in needs.items():
        memory = "" if need.memory is None else f"{need.memory / 2**30:.1f} GiB"
        write(f"{stage:10}{duration(need.seconds):>12}{memory:>12}{need.disk / 2**20:>8.0f} MiB\n")
    seconds, disk = (sum(getattr(need, name) for need in needs.values()) for name in ("seconds", "disk"))
    write(f"{'all':10}{duration(seconds):>12}{'':12}{disk / 2**20:>8.0f} MiB\n")


@app.command()
def checkpoints(
    folder: Annotated[Path, path_option(help="the folder of checkpoints")] = Path(".checkpoints"),
    clean: Annotated[bool, typer.Option("--clean", help="delete all of them")] = False,
) -> None:
    """List the checkpoints of interrupted runs, from which dvc repro continues, or delete them."""
    from glann.runtime.checkpoint_files import stored  # noqa: PLC0415

    for checkpoint in stored(folder):
        status = checkpoint.path.stat()
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
        write(f"{checkpoint.path}  {status.st_size / 2**20:.1f} MiB  {written}  {checkpoint.state}\n")
        if clean:
            checkpoint.path.unlink()
            write("  deleted\n")
