"""All of params.yaml: a frozen model per section, each key with its meaning, unit and bounds."""

from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from glann.errors import GlannError
from glann.evaluate.settings import Evaluate
from glann.glo.settings import Glo
from glann.imle.settings import Imle
from glann.networks.decoders.settings import SIZES_MADE
from glann.prepare.settings import Prepare
from glann.runtime.files import STAGES
from glann.runtime.settings import IN_FILE, Compute, Section
from glann.runtime.validation import one_line
from glann.runtime.yaml_file import read_yaml
from glann.sample.settings import Sample

Settings = TypeVar("Settings", bound=Section)


class Params(Section):
    """All of params.yaml."""

    seed: int = Field(0, ge=0, lt=2**63)
    """seed of all stages except sample, which has its own"""
    compute: Compute = Compute()
    prepare: Prepare = Prepare()
    glo: Glo = Glo()
    imle: Imle = Imle()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()

    @field_validator(*STAGES, "compute", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value  # `glo:` with nothing below it

    @model_validator(mode="after")
    def _decoder_makes_the_size(self) -> Self:
        kind, size = self.glo.decoder.kind, self.prepare.resolution
        if size not in SIZES_MADE[kind]:
            others = [name for name, sizes in SIZES_MADE.items() if size in sizes]
            other = f", or choose glo.decoder.kind {' or '.join(others)}" if others else ""
            allowed = ", ".join(map(str, SIZES_MADE[kind]))
            raise ValueError(f"prepare.resolution: {size} px, but {kind} decoders make {allowed}{other}")
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a params.yaml; errors are those of `load_settings`."""
    return load_settings(path, Params)


def load_settings(path: str | Path, model: type[Settings]) -> Settings:
    """Read and check a file of settings.

    Raises
    ------
    GlannError
        One line with the file, the key path, what is wrong and what is allowed.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        asked = "" if model is Params else f" --{model.__name__.lower()}"
        raise GlannError(f"{path}: no such file; make one with: glann params{asked} > {path}") from None
    if values is not None and not isinstance(values, dict):
        raise GlannError(f"{path}: expected keys and values, found a {type(values).__name__}")
    try:
        return model.model_validate(values or {}, context=IN_FILE)
    except ValidationError as error:
        raise GlannError(f"{path}: {one_line(error, model)}") from None
