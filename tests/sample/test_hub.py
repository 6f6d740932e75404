"""Sharing a generator over the Hub: what is published, and what comes back."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from command_line import glann_at_once
from hub_server import NOT_YOURS, TOKEN, Hub, Repository, hub_server
from markdown_it import MarkdownIt
from PIL import Image
from pydantic import BaseModel
from small import small_generator

import glann
from glann.errors import GlannError
from glann.evaluate import comparison
from glann.images.png import grid, save_png
from glann.imle.calibration import borrowed_residuals
from glann.params import Params, load_params
from glann.runtime.compute import Execution
from glann.runtime.files import save_json
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.yaml_file import yaml_text
from glann.sample.generator import Generator
from glann.sample.hub.card import COLUMNS
from glann.sample.hub.files import NOT_OF_THE_RESULT, of_the_result

ROW = {"frechet": 3.28961, "kid": 0.142801, "precision": 0.948, "recall": 0.84, "coverage": 1.0}
METRICS = {
    "features": "pixels",
    "count": 3000,
    "reference_count": 500,
    "train": ROW | {"frechet": 2.0},
    "glann": ROW,
    "glo_gaussian": ROW | {"frechet": 15.7796},
    "classes": {"cat": {"kid": 1.0}},
}
ONE_THREAD = Compute(device="cpu", precision="float32", threads=1)  # as in the fixture cpu
SECRET = "/home/ada/secret"
PATHS = {
    "compute": {"tensorboard": f"{SECRET}/tensorboard"},
    "prepare": {"source": "folder", "path": f"{SECRET}/faces"},
    "glo": {"loss": {"weights": f"{SECRET}/vgg.safetensors"}, "start_from": f"{SECRET}/data"},
    "imle": {"start_from": f"{SECRET}/generator.safetensors"},
    "evaluate": {"weights": f"{SECRET}/inception.pth"},
}
FILES = {"README.md", "config.json", "generator.safetensors"}
FROM_DATA = {"grid.png", "metrics.json", "params.yaml"}


@pytest.fixture
def generator(cpu: Execution) -> Generator:
    return small_generator(cpu)


@pytest.fixture
def data(generator: Generator, tmp_path: Path) -> Path:
    """The folder data of a finished run, with params.yaml beside it."""
    data = tmp_path / "project/data"
    generator.save(data / "imle/generator.safetensors")
    save_json(data / "prepare/dataset.json", {"train": 3000, "bad_files": [f"{SECRET}/bad.png"]})
    save_json(data / "evaluate/metrics.json", METRICS)
    save_png(data / "sample/grid.png", grid(generator.sample(4)))
    set_params(data, PATHS)
    return data


def set_params(data: Path, values: object) -> None:
    (data.parent / "params.yaml").write_text(values if isinstance(values, str) else yaml_text(values))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


def hub_at(folder: Path, address: str, token: str = TOKEN) -> dict[str, str | None]:
    """The environment in which the Hub is at `address`: huggingface_hub reads it when it is imported."""
    return {
        **{name: None for name in os.environ if name.startswith("HF_")},
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
        "NO_PROXY": "127.0.0.1,localhost",
    }


def run(folder: Path, address: str, *command: object, token: str = TOKEN):
    """Run a program of Python."""
    found = hub_at(folder, address, token)
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={name: value for name, value in (os.environ | found).items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )


def glann_in(folder: Path, address: str, *arguments: object, token: str = TOKEN, **more: str):
    return glann_at_once(*arguments, cwd=folder, **(hub_at(folder, address, token) | more))


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def blocks(card: str, language: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(card) if token.info == language]


@pytest.mark.parametrize("large", [True, False], ids=["LFS", "in the commit"])
def test_others_draw_the_same_from_what_is_published_as_its_card_says(
    data: Path, hub: Hub, large: bool, tmp_path: Path
):
    hub.large = large
    generator = Generator.load(data / "imle/generator.safetensors")  # in the precision that others have too
    # Without LFS, nothing is uploaded by Xet either, so the way that is taken by default can be taken here.
    more = {} if large else {"HF_HUB_DISABLE_XET": "0"}
    result = glann_in(data.parent, hub.address, "publish", "ada/faces", **more)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == f"published at {hub.address}/ada/faces"
    repository = hub.repositories["ada/faces"]
    assert repository.commits[-1].keys() == {".gitattributes"} | FILES | FROM_DATA
    assert bool(hub.objects) == large and not repository.private

    card = repository.commits[-1]["README.md"].decode()
    (program,) = blocks(card, "python")
    assert run(tmp_path, hub.address, "-c", program).returncode == 0
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "samples.png")), grid(generator.sample(16, seed=7))
    )

    *_, command = blocks(card, "bash")[0].splitlines()
    arguments = command.replace("samples.png", "samples.npy").split()[1:]
    # The file is in the cache by now.
    result = glann_in(tmp_path, hub.address, *arguments, HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / "samples.npy").tobytes() == generator.sample(64).tobytes()


def test_publishing_again_replaces_the_files_and_keeps_the_earlier_version(
    cpu: Execution, data: Path, hub: Hub, tmp_path: Path
):
    other = small_generator(cpu, channels=1)
    other.save(tmp_path / "other.safetensors")
    assert glann_in(data.parent, hub.address, "publish", "ada/faces").returncode == 0
    repository = hub.repositories["ada/faces"]
    first = repository.sha
    arguments = ("publish", "ada/faces", "--generator", tmp_path / "other.safetensors")
    assert glann_in(data.parent, hub.address, *arguments).returncode == 0
    assert repository.commits[-1].keys() == {".gitattributes"} | FILES  # no metrics of another generator
    for name, shape in (("hf://ada/faces", (2, 16, 16, 1)), (f"hf://ada/faces@{first}", (2, 16, 16, 3))):
        result = glann_in(
            tmp_path, hub.address, "sample", "--count", 2, "--out", "x.npy", "--generator", name
        )
        assert result.returncode == 0, result.stderr
        assert np.load(tmp_path / "x.npy").shape == shape


def test_a_private_repository_is_private_and_a_public_one_is_not_taken_for_one(data: Path, hub: Hub):
    assert glann_in(data.parent, hub.address, "publish", "ada/faces", "--private").returncode == 0
    assert hub.repositories["ada/faces"].private
    assert glann_in(data.parent, hub.address, "publish", "ada/faces", "--private").returncode == 0
    hub.repositories["ada/public"] = Repository([{}])
    line = one_line(glann_in(data.parent, hub.address, "publish", "ada/public", "--private"))
    assert "ada/public: exists already and is public; make it private" in line
    assert hub.repositories["ada/public"].commits == [{}]


def test_a_folder_is_saved_and_read(generator: Generator, data: Path, tmp_path: Path):
    generator.save_pretrained(tmp_path / "shared", data)
    assert {path.name for path in (tmp_path / "shared").iterdir()} == FILES | FROM_DATA
    for name, path in {"grid.png": "sample/grid.png", "metrics.json": "evaluate/metrics.json"}.items():
        assert (tmp_path / "shared" / name).read_bytes() == (data / path).read_bytes()
    assert load_params(tmp_path / "shared/params.yaml").prepare.source == "folder"
    config = json.loads((tmp_path / "shared/config.json").read_text())
    assert config["decoder"]["size"] == 16 and config["mapping"]["noise_dim"] == 4
    again = Generator.from_pretrained(tmp_path / "shared", ONE_THREAD)
    assert again.sample(70, seed=3).tobytes() == generator.sample(70, seed=3).tobytes()


def test_the_command_writes_a_folder_without_a_network(data: Path, tmp_path: Path):
    result = glann_in(data.parent, "http://127.0.0.1:9", "publish", "ada/faces", "--out", tmp_path / "shared")
    assert result.returncode == 0 and result.stderr.splitlines() == [f"6 files in {tmp_path / 'shared'}"]
    assert "hf://ada/faces" in (tmp_path / "shared/README.md").read_text()
    line = one_line(glann_in(data.parent, "http://127.0.0.1:9", "publish"))
    assert "name a repository, such as user/faces, or a folder with --out" in line
    line = one_line(glann_in(data.parent, "http://127.0.0.1:9", "publish", "--out", "data/sample"))
    assert "the pipeline puts its results there" in line


def test_the_card_says_what_the_model_is(generator: Generator, data: Path, tmp_path: Path):
    generator.save_pretrained(tmp_path / "shared", data)
    card = (tmp_path / "shared/README.md").read_text()
    _, head, text = card.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["library_name"] == "glann" and head["pipeline_tag"] == "unconditional-image-generation"
    assert {"glann", "glo", "imle"} <= {*head["tags"]} and "license" not in head
    assert "RGB images of 16 × 16 pixels. It was trained on 3,000 images" in text
    assert "![samples](grid.png)" in text
    assert "compares 3000 images with 500 hold-out images" in text and "by pixels features" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "|  | Fréchet ↓ | KID ↓ | precision ↑ | recall ↑ | coverage ↑ |"  # no sharpness there
    assert lines[3] == "| GLANN samples | 3.29 | 0.1428 | 0.948 | 0.84 | 1 |"
    assert lines[4].startswith("| GLO + gaussian, instead of IMLE | 15.78 |")
    (settings,) = blocks(card, "yaml")
    assert settings == (tmp_path / "shared/params.yaml").read_text()
    assert "imle.residuals" not in text
    assert COLUMNS.items() <= comparison.COLUMNS.items()


def test_the_card_names_the_classes_that_can_be_chosen(cpu: Execution, tmp_path: Path):
    small_generator(cpu, classes={"cat": 2, "<b>": 1}).save_pretrained(tmp_path / "shared")
    card = (tmp_path / "shared/README.md").read_text()
    assert r"One of 2 classes can be chosen: cat, \<b\>." in card


def test_without_data_the_card_has_what_the_generator_knows(generator: Generator, tmp_path: Path):
    pairs = torch.randn(2, 20, 8, generator=stream(0, "pairs"))
    generator.mapping.set_residuals(*borrowed_residuals(*pairs, 1.0, stream(0, "draws")))
    generator.save_pretrained(tmp_path / "shared")
    card = (tmp_path / "shared/README.md").read_text()
    assert "16 × 16" in card and "USER/NAME" in card and "imle.residuals" in card
    assert not any(words in card for words in ("grid.png", "Metrics", "Training"))


def test_no_path_of_this_machine_is_published(generator: Generator, data: Path, tmp_path: Path):
    generator.save_pretrained(tmp_path / "shared", data)
    for path in (tmp_path / "shared").iterdir():
        content = path.read_bytes()
        assert not any(word in content for word in (b"/home", b"secret", str(tmp_path).encode())), path


def test_every_setting_that_is_a_path_is_left_out():
    def paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            if "_expanded" in f"{field.annotation} {field.metadata}":  # what makes a text a path
                yield above + name
            for part in (field.annotation, *get_args(field.annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    yield from paths(part, f"{above}{name}.")

    found = {*paths(Params)}
    assert len(found) >= 6
    assert all(any(f"{path}.".startswith(f"{left}.") for left in NOT_OF_THE_RESULT) for path in found)
    kept = of_the_result(Params().model_dump())
    assert "source" in kept["prepare"] and "path" not in kept["prepare"] and "compute" not in kept


@pytest.mark.parametrize("text", [f"prepare: {{pth: {SECRET}}}", 'imle: {index: "C:\\\\Users\\\\ada"}'])
def test_a_setting_that_looks_like_a_path_stops_publishing(
    generator: Generator, data: Path, text: str, tmp_path: Path
):
    set_params(data, text)
    with pytest.raises(GlannError, match=r"params\.yaml: .*looks like a path, so it is not published"):
        generator.save_pretrained(tmp_path / "shared", data)
    assert not (tmp_path / "shared").exists()


def test_odd_settings_and_metrics_do_not_break_the_card(generator: Generator, data: Path, tmp_path: Path):
    set_params(data, 'glo: {parameter_groups: [{match: "````<b>"}]}\nx: &x [*x]\nseed: 7')
    odd = {"features": "</details>|`<b>[x](y)", "count": None, "a|b": {"frechet": "many", "kid": True}}
    save_json(data / "evaluate/metrics.json", odd)
    save_json(data / "prepare/dataset.json", ["no"])
    generator.save_pretrained(tmp_path / "shared", data)
    card = (tmp_path / "shared/README.md").read_text()
    (settings,) = blocks(card, "yaml")
    assert yaml.safe_load(settings)["seed"] == 7 and "x" not in yaml.safe_load(settings)
    rendered = MarkdownIt("commonmark").enable("table").render(card)
    assert rendered.count("</details>") == 1 and "<b>" not in rendered and "<td>GLO + a|b" in rendered


def test_params_that_are_no_settings_are_refused(generator: Generator, data: Path, tmp_path: Path):
    for text, message in (("- a", "expected sections such as glo:"), ("a: [", "not YAML")):
        set_params(data, text)
        with pytest.raises(GlannError, match=message):
            generator.save_pretrained(tmp_path / "shared", data)


def test_metrics_of_another_generator_are_not_published(cpu: Execution, data: Path, tmp_path: Path):
    other = small_generator(cpu)
    other.decoder.network.to_image.bias.data += 1
    for wrong in (other, small_generator(cpu, channels=1)):
        with pytest.raises(GlannError, match="data: belongs to another generator"):
            wrong.save_pretrained(tmp_path / "shared", data)
    with pytest.raises(GlannError, match="nowhere: no such folder"):
        other.save_pretrained(tmp_path / "shared", tmp_path / "nowhere")
    assert not (tmp_path / "shared").exists()


def test_a_project_with_a_generator_in_it_stays_as_it_is(generator: Generator, tmp_path: Path):
    generator.save(tmp_path / "generator.safetensors")
    for name in ("README.md", "params.yaml"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(GlannError, match="has other files already; name a new folder"):
        generator.save_pretrained(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.glob("*.[my]*")} == {
        "README.md": "mine",
        "params.yaml": "mine",
    }


def test_a_folder_with_other_files_stays_as_it_is(generator: Generator, data: Path, tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/README.md").write_text("mine")
    with pytest.raises(GlannError, match="has other files already; name a new folder"):
        generator.save_pretrained(tmp_path / "shared", data)
    assert [*(tmp_path / "shared").iterdir()] == [tmp_path / "shared/README.md"]
    with pytest.raises(GlannError, match=r"README\.md: a file; name a folder"):
        generator.save_pretrained(tmp_path / "shared/README.md")


def test_saving_again_leaves_nothing_of_the_earlier_version(generator: Generator, data: Path, tmp_path: Path):
    generator.save_pretrained(tmp_path / "shared", data)
    generator.save_pretrained(tmp_path / "shared")
    assert {path.name for path in (tmp_path / "shared").iterdir()} == FILES
    assert "Metrics" not in (tmp_path / "shared/README.md").read_text()


@pytest.mark.parametrize("name", ["", "faces", "a/b/c", "/faces", "ada/", "../faces", "a b/c", "ada/x.git"])
def test_what_is_no_name_of_a_repository_is_refused(generator: Generator, name: str, tmp_path: Path):
    with pytest.raises(GlannError, match="not a name on the Hub; use one such as user/faces"):
        generator.push_to_hub(name)
    if name:  # else it is the current folder
        with pytest.raises(GlannError, match="no such folder, and not a name on the Hub"):
            Generator.from_pretrained(name)


def test_a_folder_or_file_without_a_generator_is_refused(generator: Generator, tmp_path: Path):
    with pytest.raises(GlannError, match=r"generator\.safetensors: no such file"):
        Generator.from_pretrained(tmp_path)
    generator.save(tmp_path / "g.safetensors")
    with pytest.raises(
        GlannError, match=r"g\.safetensors: a file, not a folder; read it with Generator\.load"
    ):
        Generator.from_pretrained(tmp_path / "g.safetensors")


@pytest.mark.parametrize("config", ["[]", "{", '{"generator": 1, "files": 2, "compute": 3}'])
def test_a_strange_config_ends_in_one_line_or_is_ignored(generator: Generator, config: str, tmp_path: Path):
    generator.save_pretrained(tmp_path / "shared")
    (tmp_path / "shared/config.json").write_text(config)
    if len(config) > 2:
        again = Generator.from_pretrained(tmp_path / "shared", ONE_THREAD)
        assert np.array_equal(again.sample(1), generator.sample(1))
    else:
        with pytest.raises(GlannError, match="shared: "):
            Generator.from_pretrained(tmp_path / "shared")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "you are not logged in, or your token is not valid .*; run: hf auth login"),
        ("hf_wrong", "you are not logged in, or your token is not valid .*; run: hf auth login"),
        (
            NOT_YOURS,
            r"your token does not allow this \(this token is for reading\); create one with write access",
        ),
    ],
    ids=["none", "wrong", "for reading"],
)
def test_who_may_not_publish_is_told_what_to_do(data: Path, hub: Hub, token: str, message: str):
    line = one_line(glann_in(data.parent, hub.address, "publish", "ada/faces", token=token))
    assert re.search(f"ada/faces: {message}", line), line
    assert not hub.repositories


def test_what_cannot_be_read_from_the_hub_is_one_line(generator: Generator, hub: Hub, tmp_path: Path):
    hub.repositories |= {
        "ada/empty": Repository([{}]),
        "ada/private": Repository([{}], private=True),
        "ada/gated": Repository([{}], gated=True),
    }
    messages = {
        "ada/nobody": "ada/nobody: no such repository on the Hub, or a private one; check the name",
        "ada/private": "ada/private: no such repository on the Hub, or a private one",
        "ada/empty": "ada/empty: has no generator.safetensors; name a repository that glann has published",
        "ada/empty@v2": "ada/empty: has no such revision; name a branch, a tag or a commit",
        "ada/gated": "ada/gated: access is restricted; ask for it on the repository's page",
    }
    arguments = ("sample", "--out", "x.png", "--generator", "hf://faces")
    line = one_line(glann_in(tmp_path, hub.address, *arguments, token=""))
    assert "faces: not a name on the Hub; use one such as user/faces" in line
    code = """
import sys
from pathlib import Path
from glann.cli.model import generator_file
from glann.errors import GlannError
for name in sys.argv[1:]:
    try:
        generator_file(Path(f"hf://{name}"))
    except GlannError as error:
        print(error)
"""
    lines = run(tmp_path, hub.address, "-c", code, *messages, token="").stdout.splitlines()
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages.values(), strict=True):
        assert line.startswith(message)


def test_a_hub_that_fails_or_is_not_there_is_one_line(data: Path, hub: Hub):
    hub.broken = True
    line = one_line(glann_in(data.parent, hub.address, "publish", "ada/faces"))
    assert "ada/faces: the Hub answered 500 (broken); try again later" in line
    nowhere = "http://127.0.0.1:9"
    line = one_line(glann_in(data.parent, nowhere, "publish", "ada/faces"))
    assert f"ada/faces: could not reach {nowhere} (" in line and "check the network" in line
    line = one_line(glann_in(data.parent, nowhere, "publish", "ada/faces", HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set; unset it" in line


def test_without_the_package_a_line_says_which_one(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "glann.sample.hub.sharing", raising=False)
    message = r"needs the package huggingface_hub; run: pip install 'glann\[hub\]'"
    for use in (
        lambda: generator.save_pretrained(tmp_path / "shared"),
        lambda: generator.push_to_hub("ada/faces"),
        lambda: glann.Generator.from_pretrained("ada/faces"),
    ):
        with pytest.raises(GlannError, match=message):
            use()
