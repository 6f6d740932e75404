"""The command around the pipeline of rivals."""

from pathlib import Path
from typing import Annotated

import typer

from glann.cli.app import app, write
from glann.errors import GlannError
from glann.params import load_params, load_settings
from glann.peers.settings import Peers
from glann.runtime.console import say
from glann.runtime.files import check_file, replacing
from glann.runtime.yaml_file import yaml_editor

FILE = Path("peers/params.yaml")
UNEQUAL = 1.25  # how many times as long one training may take as the other


@app.command()
def peers(
    seconds: Annotated[
        float | None,
        typer.Argument(help="time of each training; default: what glo and imle are estimated to take"),
    ] = None,
) -> None:
    """Time each rival for some seconds, and write into peers/params.yaml how many images fit the time."""
    if seconds is not None and not 0 < seconds < 1e9:
        raise GlannError(f"{seconds:g} seconds: give a time above 0 and below 1e9")
    settings, params = load_settings(FILE, Peers), load_params()
    check_file("data/prepare/images.npy")

    from glann.estimate import training_seconds  # noqa: PLC0415
    from glann.networks.decoders.network import DecoderArchitecture  # noqa: PLC0415
    from glann.peers.pace import ROUND, WARM_UP, images_in  # noqa: PLC0415
    from glann.peers.train import check_images  # noqa: PLC0415
    from glann.runtime.compute import execution  # noqa: PLC0415
    from glann.runtime.npy import load_npy  # noqa: PLC0415

    images = load_npy("data/prepare/images.npy", mmap=True)
    architecture = DecoderArchitecture(
        config=params.glo.decoder,
        latent_dim=params.glo.latent_dim,
        size=params.prepare.resolution,
        channels=params.prepare.channels,
    )
    for name in settings.models:
        check_images(images, architecture, getattr(settings, name))
    on = execution(params.compute)
    own = training_seconds(params, len(images))
    say(f"glo and imle would take about {own:.3g} s on this machine, as it is now")
    if seconds is not None and not 1 / UNEQUAL < seconds / own < UNEQUAL:
        say(
            f"rivals get {seconds:g} s, as asked for; without a number, they get as much time as glo and imle"
        )
    if params.compute.processes > 1:
        say(
            f"compute.processes: {params.compute.processes}: all times here are those of one process; "
            "trainings in several take less time, rivals and GLANN not always by as much"
        )
    seconds = seconds or float(f"{own:.3g}")
    say(f"timing {', '.join(settings.models)}: at least {WARM_UP + ROUND} steps of each")
    yaml = yaml_editor()
    document = yaml.load(FILE.read_text(encoding="utf-8"))
    for name in settings.models:
        config = getattr(settings, name)
        count = images_in(seconds, name, images, config, architecture, params.glo.loss, on)
        document[name] |= {"images": count, "seconds": seconds}
        write(f"{name}: {count:,} images\n")
    with replacing(FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml.dump(document, file)
