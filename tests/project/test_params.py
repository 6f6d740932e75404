import signal
from itertools import pairwise
from pathlib import Path

import pytest

from glann.errors import GlannError
from glann.params import Params, load_params
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
        "choose glo.decoder.kind dcgan or residual or smooth",
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
    "no mapping": ("- seed", "expected keys and values, found a list"),
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


def test_presets_for_the_papers_data_have_its_sizes():
    for name in ("mnist", "fashion_mnist", "cifar10", "celeba64"):
        params = preset(name)
        assert (params.glo.latent_dim, params.imle.noise_dim) == (64, 32)
        assert params.glo.loss.kind == "perceptual"
    for name in ("mnist", "fashion_mnist"):
        assert (preset(name).glo.decoder.kind, preset(name).glo.decoder.width) == ("infogan", 64)


def test_every_key_has_a_comment():
    lines = params_yaml(Params()).splitlines()
    for before, line in pairwise(lines):
        if not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), line


def bomb(inner: str = "[x]") -> str:
    """Aliases in YAML that stand for 9^9 items in a few hundred bytes."""
    for name in "abcdefghi":
        inner = f"[&{name} {inner}{f', *{name}' * 8}]"
    return inner


BOMBED = {
    "int": "glo: {epochs: BOMB}",
    "float": "imle: {lr: BOMB}",
    "choice": "glo: {decoder: {kind: BOMB}}",
    "text": "glo: {loss: {weights: BOMB}}",
    "section": "glo: BOMB",
    "list of models": "glo: {parameter_groups: BOMB}",
    "model in a list": "glo: {parameter_groups: [BOMB]}",
    "list of ints": "prepare: {background: BOMB}",
    "int in a list": "prepare: {background: [1, 2, BOMB]}",
    "list of choices": "evaluate: {priors: [BOMB]}",
    "unknown key": "glo: {foo: BOMB}",
    "unknown section": "foo: BOMB",
    "mapping key": "? BOMB\n: 1",
    "key twice": "seed: BOMB\nseed: 1",
    "all": "BOMB",
    "set": "glo: {epochs: !!set {? BOMB}}",
    "omap": "glo: {epochs: !!omap [a: BOMB]}",
}


@pytest.mark.parametrize("text", BOMBED.values(), ids=BOMBED.keys())
def test_aliases_that_stand_for_billions_of_items_are_refused_at_once(text: str, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("BOMB", bomb()))
    signal.alarm(5)  # ends the test run instead of taking all of the memory
    try:
        with pytest.raises(GlannError) as error:
            load_params(path)
    finally:
        signal.alarm(0)
    assert len(str(error.value)) < len(str(path)) + 400 and "\n" not in str(error.value)


def test_merges_that_grow_without_end_are_refused(tmp_path: Path):
    layers = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    (tmp_path / "params.yaml").write_text("\n".join(["a0: &a0 {x: 1}", *layers]))
    signal.alarm(5)
    try:
        with pytest.raises(GlannError, match="line 5: not YAML: << merges more than 1000 keys"):
            load_params(tmp_path / "params.yaml")
    finally:
        signal.alarm(0)
    (tmp_path / "params.yaml").write_text("glo: &a {batch_size: 8}\nimle: {<<: *a, epochs: 3}")
    assert load_params(tmp_path / "params.yaml").imle.batch_size == 8


ODD = {
    "digits": (f"seed: {'9' * 5000}", "line 1: not YAML: '99999"),
    "hexadecimal digits": (
        f"seed: 0x{'9' * 5000}",
        "seed: should be less than 9223372036854775808, found a num",
    ),
    "digits of a choice": (f"prepare: {{channels: 0x{'9' * 5000}}}", "prepare.channels: "),
    "digits of a count": (
        f"prepare: {{count: 0x{'9' * 5000}}}",
        "prepare.count: should be less than or equal to",
    ),
    "epochs beyond floats": (
        f"imle: {{epochs: 1{'0' * 400}}}",
        "imle.epochs: should be less than or equal to",
    ),
    "digits as a key": (
        f"glo: {{? 0x{'9' * 5000} : 1}}",
        "keys should be strings, found a number of about 6021",
    ),
    "control characters in a key": ('glo: {"a\\n\\e[31m": 1}', "glo.'a\\n\\x1b[31m': unknown key"),
    "NUL in a path": (
        'prepare: {path: "a\\0b"}',
        "prepare.path: should have no nul character, found 'a\\x00b'",
    ),
    "NUL in weights": ('glo: {loss: {weights: "a\\0b"}}', "glo.loss.weights: should have no nul"),
    "NUL in weights of features": ('evaluate: {weights: "a\\0b"}', "evaluate.weights: should have no nul"),
    "NUL in a pattern": (
        'imle: {parameter_groups: [{match: "a\\0"}]}',
        "imle.parameter_groups.0.match: should",
    ),
    "no weights": ("evaluate: {weights: ''}", "evaluate.weights: string should have at least 1 character"),
    "GPU beyond all numbers": (
        "compute: {device: 'cuda:99999999999'}",
        "compute.device: should be auto (a GPU",
    ),
    "GPU beyond a byte": ("compute: {device: 'cuda:128'}", "cpu, cuda or cuda:N, found 'cuda:128'"),
    "GPU in octal": ("compute: {device: 'cuda:010'}", "cpu, cuda or cuda:N, found 'cuda:010'"),
    "GPU in Arabic": ("compute: {device: 'cuda:١'}", "cpu, cuda or cuda:N, found 'cuda:١'"),
    "impossible date": ("a: 1\nseed: 2001-99-99", "line 2: not YAML: '2001-99-99': month must be in 1..12"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_value_that_no_program_could_use_is_refused_when_params_are_checked(name: str, tmp_path: Path):
    text, expected = ODD[name]
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GlannError) as error:
        load_params(path)
    message = str(error.value)
    assert expected in message and "\n" not in message and len(message) < len(str(path)) + 300


MEANT = {
    "spelling": ("glo: {epoch: 3}", "glo.epoch: unknown key; did you mean glo.epochs?"),
    "section": ("sampel: {count: 3}", "sampel: unknown key; did you mean sample?"),
    "another section": ("glo: {noise_dim: 3}", "glo.noise_dim: unknown key; did you mean imle.noise_dim?"),
    "further down": (
        "imle: {width: 3}",
        "imle.width: unknown key; did you mean imle.mapping.width or glo.deco",
    ),
    "no section": ("epochs: 3", "epochs: unknown key; did you mean glo.epochs or imle.epochs?"),
    "list": (
        "glo: {parameter_groups: [{match: x, lr_multiplyer: 2}]}",
        "did you mean glo.parameter_groups.0.lr_multiplier?",
    ),
    "choice": (
        "glo: {decoder: {kind: resnet}}",
        "'residual' or 'smooth', found 'resnet'; did you mean residual?",
    ),
    "choice in a list": ("evaluate: {priors: [gausian]}", "found 'gausian'; did you mean gaussian?"),
    "nothing like it": ("glo: {zzz: 3}", "glo.zzz: unknown key; see: glann params"),
}


@pytest.mark.parametrize("name", MEANT)
def test_what_was_meant_is_suggested(name: str, tmp_path: Path):
    text, expected = MEANT[name]
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(GlannError) as error:
        load_params(tmp_path / "params.yaml")
    assert expected in str(error.value)


def test_every_number_has_an_upper_bound():
    """Python's integers have none, and what they are multiplied by and divided by does."""

    def unbounded(schema: dict) -> list[str]:
        found = []
        for name, entry in schema.get("properties", {}).items():
            for kind in (entry, *entry.get("anyOf", []), entry.get("items", {})):
                if (
                    kind.get("type") == "integer"
                    and not {"maximum", "exclusiveMaximum", "enum"} & kind.keys()
                ):
                    found.append(name)
        return found

    schema = Params.model_json_schema()
    assert [name for part in (schema, *schema["$defs"].values()) for name in unbounded(part)] == []


def test_paths_are_expanded_as_a_shell_would(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DISK", "/big")
    params = Params.model_validate(
        {
            "prepare": {"source": "folder", "path": "~/faces"},
            "glo": {"loss": {"weights": "$DISK/vgg.pth"}},
            "evaluate": {"weights": "${NOT_SET}/vgg.pth"},
        }
    )
    assert params.prepare.path == "/home/me/faces"
    assert params.glo.loss.weights == "/big/vgg.pth"
    assert params.evaluate.weights == "${NOT_SET}/vgg.pth"
