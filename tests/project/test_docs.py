"""README.md and docs/*.md: their programs run, and what they link to and name exists."""

import ast
import os
import pydoc
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import ROOT
from pages import CHECKS, PAGES, code_spans, commands, program, tokens, with_checks
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from glann.export.graph import export_onnx
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.params import Params
from glann.presets import PRESETS
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.sample.generator import Generator

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FILE = re.compile(r"\.(damaged|html|json|lock|md|npy|png|webp|pth|py|safetensors|yaml)$")


@pytest.mark.parametrize(
    ("page", "checked"),
    # how many comments are checked at least, so that none gets lost unseen
    [
        (page, {"README.md": 2, "library.md": 8, "using.md": 2}[page.name])
        for page in PAGES
        if "```python" in page.read_text()
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_python_of_a_page_runs_as_one_program(page: Path, checked: int, cpu: Execution, tmp_path: Path):
    tiny_generator(cpu).save(tmp_path / "data/imle/generator.safetensors")  # README presumes a finished run
    export_onnx(Generator.load(tmp_path / "data/imle/generator.safetensors"), tmp_path / "generator.onnx")
    # What using.md reads from the Hub is here a folder of that name.
    tiny_generator(cpu).save_pretrained(tmp_path / "user/faces")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    text = program(page)
    assert text.count("check_") - CHECKS.count("check_") >= checked
    result = python(text, tmp_path)
    assert result.returncode == 0, result.stderr


def test_a_wrong_comment_beside_a_line_is_found(tmp_path: Path):
    right = (
        "import numpy as np\nx = np.zeros((2, 3), np.uint8)  # uint8 [2, c]\nprint({'a': 1})  # {'a': ...}\n"
    )
    for text, fine in (
        (right, True),
        (right.replace("[2, c]", "[3, c]"), False),
        (right.replace("# uint8", "# float32"), False),
        (right.replace("[2, c]", "[2, c, h]"), False),
        (right.replace("# {'a'", "# {'b'"), False),
    ):
        assert (python(CHECKS + with_checks(text), tmp_path).returncode == 0) == fine


def test_commands_are_found_in_every_form(tmp_path: Path):
    (tmp_path / "page.md").write_text(
        "Type `dvc repro` or `glann`.\n\n    make it  # why\n    # how\n\n```bash\ncp a b\n```\n\n"
        "```console\n$ git status\nclean\n```\n\n```bash\n#!/bin/bash\nfor x in y; do\n```\n\n"
        "| a | b |\n| - | - |\n| c | `pip install d` |\n"
    )
    texts = [command.text for command in commands(tmp_path / "page.md")]
    script = "#!/bin/bash\nfor x in y; do\n"
    assert texts == ["make it", "cp a b", "git status", script, "dvc repro", "pip install d"]


@each_page
def test_links_and_images_lead_somewhere(page: Path):
    targets = [token.attrGet("href") or token.attrGet("src") for token in tokens(page)]
    for target in filter(None, targets):
        if re.match(r"https?://|mailto:", str(target)):
            continue
        path, _, anchor = str(target).partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_settings_that_a_page_names_exist_and_may_have_the_values_given(page: Path):
    for span in code_spans(page):
        sections = "|".join(Params.model_fields)
        named = re.match(rf"((?:{sections})(?:\.[a-z_0-9]+)+)(?:: |=)?(\S*)(.*)", span)
        if not named or FILE.search(named[1]):
            continue
        key, value, more = named.groups()
        assert key in keys(), span
        if value and not more:  # else it is a message that begins with the key
            check_value(key, value)


@each_page
def test_dotted_names_are_settings_or_parts_of_a_module_or_class(page: Path):
    for name in {span.split("(")[0] for span in code_spans(page)}:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name) or FILE.search(name):
            continue
        is_key = any(f".{key}".endswith(f".{name}") for key in keys())
        assert is_key or name in defined() or pydoc.locate(name), name


@each_page
def test_what_a_page_names_beside_an_idea_is_in_the_code(page: Path):
    """**Objective** (`train_glo`; GLO, ...) says which function does it."""
    values = {
        value
        for model in models()
        for field in model.model_fields.values()
        for value in get_args(field.annotation)
    }
    settings = {key.split(".")[-1] for key in keys()} | values | {*PRESETS}
    for inside in re.findall(r"\(([^()]*`[^()]*)\)", page.read_text()):
        for name in re.findall(r"`([A-Za-z_]\w*)`", inside):
            assert name in defined() | settings | TOOLS, f"({inside})"


TOOLS = {"torchrun"}


def tiny_generator(cpu: Execution) -> Generator:
    mapping = MappingNetwork(MappingArchitecture(config=Mapping(width=8, depth=1), noise_dim=4, latent_dim=8))
    decoder = DecoderNetwork(DecoderArchitecture(config=Decoder(width=8), latent_dim=8, size=16, channels=3))
    for network in (mapping, decoder):
        initialize(network, stream(0, "tiny"))
    return Generator(mapping, decoder, cpu)


def python(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@cache
def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    found = [*tokens(page)]
    headings = [found[i + 1].content for i, token in enumerate(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def models() -> set[type[BaseModel]]:
    """The models of all sections of params.yaml, and of what lists in them hold."""

    def within(annotation: Any) -> set[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = annotation.model_fields.values()
            return {annotation}.union(*(within(field.annotation) for field in fields))
        return set().union(*map(within, get_args(annotation)))

    return within(Params)


@cache
def keys() -> set[str]:
    """Every path of params.yaml: seed, glo, glo.loss, glo.loss.crop ..."""

    def paths(values: dict[str, Any], prefix: str) -> set[str]:
        inner = [
            paths(value, f"{prefix}{name}.") for name, value in values.items() if isinstance(value, dict)
        ]
        return {prefix + name for name in values}.union(*inner)

    return paths(Params().model_dump(), "")


def check_value(key: str, value: str) -> None:
    values: Any = YAML(typ="safe").load(value)
    model = Params
    for name in reversed(key.split(".")):
        values = {name: values}
    try:
        model.model_validate(values)
    except ValidationError as error:
        # `residual` decoders do not make every size: that is about two keys, of which one is named.
        wrong = [detail for detail in error.errors() if detail["loc"]]
        assert not wrong, f"{key}: {value}"


@cache
def defined() -> set[str]:
    """What glann defines: modules, functions, classes, constants, and Class.method and Class.field."""
    names = set()
    for path in (ROOT / "glann").rglob("*.py"):
        names.add(path.stem)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                members = [m for m in node.body if isinstance(m, (ast.FunctionDef, ast.AnnAssign))]
                inside = {m.name if isinstance(m, ast.FunctionDef) else m.target.id for m in members}
                names |= inside | {f"{node.name}.{name}" for name in inside}
    return names
