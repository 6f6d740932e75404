from itertools import pairwise
from pathlib import Path

import pytest

from glann.config import Params, load_params
from glann.errors import GlannError
from glann.presets import PRESETS, params_yaml, preset

WRONG = {
    "unknown key": ("glo: {epoch: 3}", "glo.epoch: unknown key"),
    "unknown section": ("sampel: {count: 3}", "sampel: unknown key"),
    "wrong type": ("glo: {epochs: '3'}", "glo.epochs: should be a valid integer, found '3'"),
    "boolean for a number": ("seed: yes please", "seed: should be a valid integer"),
    "out of range": ("imle: {lr: 0}", "imle.lr: should be greater than 0"),
    "not a number": ("imle: {lr: .nan}", "imle.lr: should be a finite number"),
    "unknown choice": ("glo: {decoder: {kind: unet}}", "glo.decoder.kind: should be 'infogan', 'dcgan'"),
    "impossible size": (
        "prepare: {resolution: 48}",
        "prepare.resolution: 48 px, but residual decoders make 16, 32",
    ),
    "size of another decoder": (
        "{prepare: {resolution: 64}, glo: {decoder: {kind: infogan}}}",
        "choose glo.decoder.kind dcgan or residual",
    ),
    "more hold-out than images": ("prepare: {count: 10, holdout: 10}", "prepare.holdout: 10 of 10"),
    "avatars without a number": ("prepare: {count: null}", "prepare.count: avatars are drawn on demand"),
    "one GPU for two": (
        "compute: {device: 'cuda:1', processes: 2}",
        "compute.device: cuda:1 is one GPU; for several processes",
    ),
    "missing pattern": ("glo: {parameter_groups: [{limit: 2.0}]}", "glo.parameter_groups.0.match: field"),
    "section that is a number": ("glo: 3", "glo: should be a valid dictionary"),
    "several mistakes": ("{seed: -1, imle: {lr: 0}}", "(and 1 more)"),
    "no mapping": ("- seed", "expected sections such as glo:, found a list"),
    "broken YAML": ("seed: [1", "line 1: not YAML"),
    "key twice": ("seed: 1\nseed: 2", "line 2: not YAML: found duplicate key"),
    "deep nesting": ("[" * 5000, "not YAML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_params_yaml_is_one_line_with_the_key_path(name: str, tmp_path: Path):
    text, expected = WRONG[name]
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(GlannError) as error:
        load_params(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and expected in message and "\n" not in message


def test_a_missing_or_binary_file_is_named(tmp_path: Path):
    with pytest.raises(GlannError, match="no such file; make one with: glann params"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GlannError, match="not UTF-8"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "glo:\n", "{}", "imle: {lr: 3e-3}"])
def test_what_is_left_out_has_its_default(text: str, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert load_params(path) == Params()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_being_written_and_read(name: str, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(params_yaml(preset(name)))
    assert load_params(path) == preset(name)


def test_the_papers_presets_have_the_papers_sizes():
    for name in ("mnist", "fashion_mnist", "cifar10", "celeba64"):
        params = preset(name)
        assert (params.glo.latent_dim, params.imle.noise_dim, params.glo.decoder.width) == (64, 32, 64)
        assert params.glo.loss.kind == "perceptual"


def test_every_key_has_a_comment():
    lines = params_yaml(Params()).splitlines()
    for before, line in pairwise(lines):
        if not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), line
