"""What is published with a generator: its settings, its metrics and a picture of samples."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from glann.errors import GlannError
from glann.networks.generator import load_generator
from glann.runtime.files import STAGES
from glann.runtime.yaml_file import read_yaml, yaml_text
from glann.sample.generator import Generator

# How a run is executed, what is drawn later, and where things are on this machine.
NOT_OF_THE_RESULT = (
    *("compute", "sample", "prepare.path", "prepare.labels", "glo.loss.weights", "glo.start_from"),
    *("imle.start_from", "evaluate.weights"),
)
FILES = {"grid.png": "sample/grid.png", "metrics.json": "evaluate/metrics.json"}
"""What is published with a generator: the name there, and where it is in the folder data."""


def of_the_result(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seed and the sections of params.yaml without what `NOT_OF_THE_RESULT` names."""
    kept = {name: deepcopy(settings[name]) for name in ("seed", *STAGES) if name in settings}
    for path in NOT_OF_THE_RESULT:
        *above, key = path.split(".")
        section: Any = kept
        for name in above:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(key, None)
    return kept


def published(generator: Generator, data: Path | None) -> dict[str, bytes]:
    """Return the content of grid.png, metrics.json and params.yaml by name, as far as they are there.

    Parameters
    ----------
    generator
        The generator that they have to belong to.
    data
        The folder data of the training; params.yaml lies beside it. None: nothing is published.

    Raises
    ------
    GlannError
        If there is no such folder, if it belongs to another generator, or if a setting looks like a path.
    """
    if data is None:
        return {}
    if not data.is_dir():
        raise GlannError(f"{data}: no such folder; name the folder data of the training")
    own = data / "imle/generator.safetensors"
    if own.is_file() and not _is_the_same(generator, own):
        raise GlannError(f"{data}: belongs to another generator; name the folder data of its training")
    found = {name: data / path for name, path in FILES.items() if (data / path).is_file()}
    files = {name: path.read_bytes() for name, path in found.items()}
    if (params := data.absolute().parent / "params.yaml").is_file():
        files["params.yaml"] = _settings(params).encode()
    return files


def _is_the_same(generator: Generator, path: Path) -> bool:
    for ours, theirs in zip((generator.mapping, generator.decoder), load_generator(path), strict=True):
        tensors, others = ours.state_dict(), theirs.state_dict()
        if tensors.keys() != others.keys():
            return False
        if not all(torch.equal(tensors[name].cpu(), others[name].cpu()) for name in tensors):
            return False
    return True


def _settings(path: Path) -> str:
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise GlannError(f"{path}: expected sections such as glo:, found a {type(values).__name__}")
    text = yaml_text(of_the_result(values))
    for line in text.splitlines():
        if "/" in line or "\\" in line:  # a misspelt key, for example
            raise GlannError(
                f"{path}: {line.strip()[:60]}: looks like a path, so it is not published; remove it"
            )
    return text
