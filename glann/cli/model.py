"""What commands that use a trained generator share."""

from pathlib import Path
from typing import Annotated

import typer

from glann.cli.app import path_option
from glann.errors import GlannError
from glann.runtime.files import STAGES

DEFAULT = Path("data/imle/generator.safetensors")
GeneratorFile = Annotated[
    Path,
    path_option(
        "--generator", help="file written by the imle stage, or hf://USER/NAME on the Hugging Face Hub"
    ),
]
DataFolder = Annotated[
    Path,
    path_option("--data", help="the data folder of the training run, if it is there: for better guesses"),
]
Weights = Annotated[
    Path | None,
    path_option("--weights", help="VGG-16 weights, for a perceptual loss; default: download them"),
]
ClassName = Annotated[
    str | None,
    typer.Option(
        "--class", help="class to draw, if the model has classes; default: at random, as in the training"
    ),
]
Truncation = Annotated[
    float, typer.Option(min=0.01, max=10, help="below 1: images are more typical and less varied")
]


def check_apart(out: Path) -> None:
    """Refuse to write where the pipeline puts its results.

    Raises
    ------
    GlannError
        If `out` is in one of these folders.
    """
    for stage in (*STAGES, "peers"):
        if out.resolve().is_relative_to(Path("data", stage).resolve()):
            raise GlannError(f"--out {out}: the pipeline puts its results there; use another folder")


def generator_file(path: Path) -> Path:
    """Return the generator file that an option names; from the Hugging Face Hub, it is downloaded once.

    Parameters
    ----------
    path
        A file, or hf://USER/NAME, to which @REVISION can be added.

    Raises
    ------
    GlannError
        If there is no file of that name, or it cannot be downloaded.
    """
    if path.parts[:1] == ("hf:",):  # a path has no double slashes
        from glann.sample.hub.sharing import download  # noqa: PLC0415

        repo_id, _, revision = "/".join(path.parts[1:]).partition("@")
        return download(repo_id, revision)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise GlannError(
            f"{path}: {what}; train a model with dvc repro, or name another file with --generator"
        )
    return path
