import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import GLANN, fails_in_one_line, glann, glann_at_once
from conftest import ROOT
from PIL import Image
from preparing import fill

from glann.images.png import grid
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.presets import params_yaml, preset
from glann.runtime.compute import NVIDIA_DRIVER, _no_such_gpu, execution
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.sample.generator import Generator
from glann.training.checkpoints import Checkpoints


def save_generator(path: Path) -> None:
    decoder = DecoderNetwork(DecoderArchitecture(config=Decoder(width=4), latent_dim=4, size=16, channels=3))
    architecture = MappingArchitecture(config=Mapping(width=4, depth=1), noise_dim=3, latent_dim=4)
    mapping = MappingNetwork(architecture)
    for network in (decoder, mapping):
        initialize(network, stream(0, "test"))
    Generator(mapping, decoder, execution(Compute(device="cpu"))).save(path)


def test_help_is_quick_and_imports_no_torch():
    glann("--help")  # fills the file cache
    started = time.monotonic()
    assert "fit-imle" in glann("--help").stdout
    assert time.monotonic() - started < 1
    code = "import sys, glann.cli.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_params_prints_presets_and_the_schema():
    assert glann("params", "--preset", "mnist").stdout == params_yaml(preset("mnist"))
    assert json.loads(glann("params", "--schema").stdout)["properties"]["glo"]
    line = fails_in_one_line(glann("params", "--preset", "imagenet"))
    assert line.startswith('glann: no preset "imagenet"; there are: avatars, faces64')
    assert fails_in_one_line(glann("params", "--preset", "mnits")).endswith("did you mean mnist?")


def test_params_are_checked(tmp_path: Path):
    (tmp_path / "params.yaml").write_text("glo: {epochs: 0}")
    line = fails_in_one_line(glann_at_once("params", "--check", tmp_path / "params.yaml"))
    assert "params.yaml: glo.epochs: should be greater than or equal to 1, found 0" in line
    assert glann_at_once("params", "--check", ROOT / "params.yaml").returncode == 0
    assert glann_at_once("params", "--check", ROOT / "peers/params.yaml", "--peers").returncode == 0
    (tmp_path / "peers.yaml").write_text("zzz: 1")
    line = fails_in_one_line(glann_at_once("params", "--check", tmp_path / "peers.yaml", "--peers"))
    assert "peers.yaml: zzz: unknown key; see: glann params --peers" in line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("prepare: {source: folder, path: nowhere}", "prepare.path: nowhere: No such file or directory"),
        ("prepare: {source: folder, path: three, holdout: 3, count: null}", "there are only 3"),
        ("glo: {loss: {kind: perceptual, weights: no.pth}}", "no.pth: no such file"),
        (
            "prepare: {holdout: 2, count: null, source: folder, path: three}\nimle: {conditional: true}",
            "no classes",
        ),
        ("imle: {start_from: no.safetensors}", "imle.start_from: no.safetensors: no such file"),
        (
            "imle: {start_from: data/imle/x.safetensors}",
            "imle.start_from: data/imle is replaced by the run; copy",
        ),
        ("glo: {start_from: data}", "glo.start_from: data/glo is replaced by the run; copy"),
        ("imle: {start_from: three/000.png}", "three/000.png: not a safetensors file"),
        ("evaluate: {features: vgg, weights: three/000.png}", "three/000.png: not a weights file"),
        ("evaluate: {features: inception, weights: no.pth}", "evaluate.weights: no.pth: no such file"),
    ],
)
def test_pictures_and_weights_are_checked_too(settings: str, said: str, tmp_path: Path):
    fill(tmp_path / "three", 3)
    (tmp_path / "params.yaml").write_text(settings)
    line = fails_in_one_line(glann_at_once("params", "--check", "params.yaml", cwd=tmp_path))
    assert said in line and "No module" not in line


def test_a_mapping_is_fitted_to_latents_a_user_brings(tmp_path: Path):
    np.save(tmp_path / "latents.npy", 50 + np.random.default_rng(0).normal(size=(100, 6)))
    (tmp_path / "quick.yaml").write_text("imle: {epochs: 2, noise_dim: 3}")
    result = glann_at_once(
        "fit-imle", "latents.npy", "--out", "mapping.safetensors", "--params", "quick.yaml", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    architecture = MappingNetwork.load(tmp_path / "mapping.safetensors").architecture
    assert (architecture.noise_dim, architecture.latent_dim) == (3, 6)


def test_a_conditional_mapping_is_fitted_to_latents_and_labels_a_user_brings(tmp_path: Path):
    np.save(tmp_path / "latents.npy", np.random.default_rng(0).normal(size=(100, 6)))
    np.save(tmp_path / "labels.npy", np.arange(100) % 3 * 10)
    (tmp_path / "quick.yaml").write_text("imle: {epochs: 2, noise_dim: 3}")
    fit = ["fit-imle", "latents.npy", "--out", "mapping.safetensors", "--params", "quick.yaml", "--labels"]
    result = glann_at_once(*fit, "labels.npy", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    architecture = MappingNetwork.load(tmp_path / "mapping.safetensors").architecture
    assert (architecture.classes, architecture.class_counts) == (["0", "10", "20"], [34, 33, 33])
    line = fails_in_one_line(glann_at_once(*fit, "latents.npy", cwd=tmp_path))
    assert "--labels latents.npy: expected integers [n], found float64 [100, 6]" in line


def test_samples_at_the_command_line_are_those_of_the_library(tmp_path: Path):
    save_generator(tmp_path / "g.safetensors")
    expected = Generator.load(tmp_path / "g.safetensors", Compute(device="cpu", threads=1)).sample(
        70, seed=3, truncation=0.8
    )
    options = ["--count", "70", "--seed", "3", "--truncation", "0.8", "--device", "cpu", "--threads", "1"]
    for out in ("a.npy", "a.png", "folder"):
        result = glann_at_once("sample", "--generator", "g.safetensors", "--out", out, *options, cwd=tmp_path)
        assert result.returncode == 0 and result.stdout == "", result.stderr
        assert result.stderr.splitlines()[-1] == f"70 images in {out}"
    assert (np.load(tmp_path / "a.npy") == expected).all()
    assert (np.asarray(Image.open(tmp_path / "a.png")) == grid(expected)).all()
    files = sorted((tmp_path / "folder").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(70)]
    assert all(
        (np.asarray(Image.open(file)) == image).all() for file, image in zip(files, expected, strict=True)
    )
    options[1] = "2"
    result = glann_at_once(
        "sample", "--generator", "g.safetensors", "--out", "folder", *options, cwd=tmp_path
    )
    assert result.stderr.splitlines()[-1] == (
        "2 images in folder, beside 68 other files that were there before"
    )


OF = ("--generator", "g.safetensors")
SAMPLE = ("sample", *OF, "--out")
WALK = ("walk", *OF, "--out")


def test_photographs_are_found_edited_and_animated(tmp_path: Path):
    save_generator(tmp_path / "g.safetensors")
    cache = str(tmp_path / "cache")
    fill(tmp_path / "dark", 4)
    for i in range(4):
        Image.new("RGB", (20, 16), (200 + i, 220, 240)).save(tmp_path / f"{i}.jpg")

    def runs(*arguments: object) -> str:
        result = glann_at_once(*arguments, *OF, "--threads", "1", cwd=tmp_path, XDG_CACHE_HOME=cache)
        assert result.returncode == 0 and result.stdout == "", result.stderr
        return result.stderr.splitlines()[-1]

    assert runs("project", "0.jpg", "dark", "--out", "found").startswith(
        "5 pictures in found; without hold-out"
    )
    entries = json.loads((tmp_path / "found/projection.json").read_text())
    assert [entry["file"] for entry in entries] == ["0.jpg", *(f"00{i}.png" for i in range(4))]
    runs("project", "1.jpg", "--out", "found")  # replaces what was found before
    assert np.load(tmp_path / "found/latents.npy").shape == (1, 4)
    examples = np.random.default_rng(0).normal(size=(2, 20, 4)) + np.array([2.0, -2.0])[:, None, None]
    for name, rows in zip(("has", "not"), examples.astype(np.float32), strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    runs("direction", "--with", "has.npy", "--without", "not.npy", "--name", "up", "--out", "u.safetensors")
    said = runs("direction", "--kind", "principal", "--count", "2", "--out", "p.safetensors")
    assert said == "2 directions in p.safetensors"
    edited = ("edit", "u.safetensors", "p.safetensors", "--latents", "found/latents.npy")
    said = runs(*edited, "--steps", "5", "--out", "strips.png")
    assert said == "1 image along up, principal 1, principal 2, in strips.png"
    assert Image.open(tmp_path / "strips.png").height == 2 + 3 * 18 + 24
    runs(*edited, "--together", "up=2,principal 2=-1", "--out", "both.png")
    both = np.asarray(Image.open(tmp_path / "both.png"))
    assert both.shape[:2] == (20, 38) and not np.array_equal(both[2:18, 2:18], both[2:18, 20:36])
    assert runs("walk", "--seeds", "1,2", "--steps", "3", "--out", "w.webp") == "6 pictures, 0.3 s, in w.webp"
    assert Image.open(tmp_path / "w.webp").n_frames == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SAMPLE, "a.png", "--seed", "9" * 5000], "--seed"),
        ([*SAMPLE, "a.png", "--seed", str(2**63)], "--seed"),
        ([*SAMPLE, "a.png", "--count", "99999999999"], "--count"),
        ([*SAMPLE, "a.npy", "--count", "999999999"], "lower the number of images (999999999)"),
        ([*SAMPLE, "a.png", "--threads", "9" * 5000], "--threads"),
        ([*SAMPLE, "a.png", "--threads", "0"], "--threads: should be greater than or equal to 1"),
        ([*SAMPLE, "a.png", "--truncation", "nan"], "--truncation"),
        ([*SAMPLE, "a.png", "--device", "cuda:99999999999"], "--device: should be auto (a GPU"),
        ([*SAMPLE, "a.png", "--device", "cuda:99"], "compute.device: cuda:99, but torch sees"),
        ([*SAMPLE, "a.png", "--precision", "float"], "did you mean float32?"),
        ([*SAMPLE, ""], "Invalid value for '--out': an empty path"),
        ([*SAMPLE, "g.safetensors/a.png"], "g.safetensors/a.png: could not be written (Not a directory)"),
        ([*SAMPLE, "/proc/a.png"], "/proc/a.png: could not be written"),
        ([*SAMPLE, "/proc/folder"], "/proc/folder: could not be written"),
        ([*SAMPLE, "g"], "--out g: this file exists already"),
        ([*SAMPLE, b"\xff.jpg".decode("utf-8", "surrogateescape")], "--out \\udcff.jpg: use a name"),
        ([*SAMPLE, "\x1b[31m.jpg"], "--out \\x1b[31m.jpg: use a name"),
        ([*SAMPLE, "9" * 300 + ".png"], "File name too long"),
        ([*SAMPLE, "a.png", "--sed", "3"], "--seed"),
        (["sample"], "Missing option '--out'; see: glann sample --help"),
        (["sampel"], "No such command 'sampel'"),
        (
            ["sample", "--generator", "folder", "--out", "a.png"],
            "folder: a folder; train a model with dvc repro, or name",
        ),
        (["sample", "--generator", "", "--out", "a.png"], "Invalid value for '--generator': an empty path"),
        (["params", "--check", ""], "Invalid value for '--check': an empty path"),
        (["params", "--check", "folder"], "folder: Is a directory"),
        (["fit-imle", "latents.npy", "--out", ""], "Invalid value for '--out': an empty path"),
        (["fit-imle", "latents.npy", "--out", "."], ".: a folder; name a file"),
        (["fit-imle", "latents.npy", "--out", "/proc/m.safetensors"], "/proc/m.safetensors: could not be"),
        (
            ["fit-imle", "latents.npy", "--out", "m.safetensors", "--params", "folder"],
            "folder: Is a directory",
        ),
        (["fit-imle", "folder", "--out", "m.safetensors"], "folder: a folder, not a file"),
        (
            ["sample", "--out", "a.png"],
            "data/imle/generator.safetensors: no such file; train a model with dvc repro",
        ),
        (["sample", "--out", "a.png", "--device", "tpu"], "--device"),
        (["fit-imle", "none.npy", "--out", "m.safetensors"], "none.npy: no such file"),
        (["fit-imle", "whole.npy", "--out", "whole.npy"], "--out whole.npy: name a .safetensors file"),
        (["fit-imle", "text.npy", "--out", "m.safetensors"], "text.npy: not an .npy file"),
        (
            ["fit-imle", "whole.npy", "--out", "m.safetensors"],
            "whole.npy: expected floats [n, d], found int64",
        ),
        ([*WALK, "a.avi"], "--out a.avi: use a name ending in .webp, .gif, .mp4"),
        ([*WALK, "a.gif", "--rate", "60"], "--rate 60: browsers play a .gif at 50 or fewer"),
        ([*WALK, "a.webp", "--seeds", "9" * 5000], "expected whole numbers separated by commas"),
        (["project", "text.npy", "--out", "f", *OF], "text.npy: not an image file; name a picture"),
        (["project", "text.npy", "--out", "data/glo", *OF], "--out data/glo: the pipeline puts its results"),
        (["project", "text.npy", "--out", ".", *OF], "--out .: has a latents.npy of something else"),
        (["direction", "--with", "folder", "--out", "d.safetensors", *OF], "--with, --without: name both"),
        (["direction", "--kind", "odd", "--out", "d.safetensors", *OF], "--kind odd: use principal or"),
        (
            ["direction", "--with", "latents.npy", "--without", "latents.npy", "--out", "d.safetensors", *OF],
            "latents.npy: latents of 3 numbers, but those of this model have 4",
        ),
        (["edit", "g.safetensors", "--out", "e.png", *OF], "g.safetensors: holds no directions"),
        (["export", "--out", "g.tflite", *OF], "--out g.tflite: use a name ending in .onnx or .html"),
        (["page", "--generator", "none"], "none: no such file; train a model with dvc repro"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(arguments: list[str], message: str, tmp_path: Path):
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "whole.npy", np.ones((3, 3), int))
    np.save(tmp_path / "latents.npy", np.random.default_rng(0).normal(size=(20, 3)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "g").write_text("hello")
    save_generator(tmp_path / "g.safetensors")
    before = set(tmp_path.iterdir())
    assert message in fails_in_one_line(glann_at_once(*arguments, cwd=tmp_path))
    assert set(tmp_path.iterdir()) == before


def test_checkpoints_are_listed_and_deleted(tmp_path: Path):
    at = {"history": [{"epoch": 1, "loss": 1.0}], "step": 3, "rows": 9, "sum": 1.0, "epochs": 5, "steps": 9}
    Checkpoints(tmp_path, "glo", "a run", minutes=0).save({}, at | {"finished": False})
    at |= {"step": 0, "rows": 0, "epochs": 1, "finished": True}
    Checkpoints(tmp_path, "imle", "a run", minutes=0).save({}, at)
    (tmp_path / "imle-0123456789abcdef.damaged").write_bytes(b"x")
    (tmp_path / "generator.safetensors").write_bytes(b"somebody's own")
    lines = glann_at_once("checkpoints", "--folder", tmp_path).stdout.splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "epoch 2 of 5, step 3 of 9",
        "cannot be read",
        "finished",
    ]
    assert len(list(tmp_path.iterdir())) == 4
    assert glann_at_once("checkpoints", "--folder", tmp_path, "--clean").stdout.count("deleted") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["generator.safetensors"] and glann(
        "checkpoints", "--folder", tmp_path / "none"
    ).stdout == ""


def test_what_is_printed_ends_well_wherever_it_goes(tmp_path: Path):
    command = f"{GLANN} params"

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)

    closed = shell(f"set -o pipefail; {command} | true")
    assert closed.returncode == 141 and closed.stderr == ""  # as cat and others end
    for where in ("params", "params --schema", "--help", "--version"):
        line = fails_in_one_line(shell(f"{GLANN} {where} > /dev/full"))
        assert "No space left on device" in line
    assert "standard output" in fails_in_one_line(shell(f"{command} >&-"))
    for encoding in ("latin-1", "ascii"):
        assert shell(f"PYTHONIOENCODING={encoding} {command} > {encoding}.yaml").returncode == 0
        assert (tmp_path / f"{encoding}.yaml").read_text(encoding="utf-8") == params_yaml(preset("avatars"))


def test_checkpoints_with_odd_names_are_listed(tmp_path: Path):
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)  # noqa: PTH102 (pathlib has no bytes)
    Path(os.fsdecode(folder), "glo-0123456789abcdef.damaged").write_bytes(b"x")
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    command = [GLANN, "checkpoints", "--folder", folder]
    result = subprocess.run(command, env=strict, capture_output=True, check=False)
    assert result.returncode == 0 and result.stdout.startswith(folder), result.stderr


def test_glann_is_a_module_too_and_says_its_version():
    module = subprocess.run(
        [sys.executable, "-m", "glann", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert module.stdout == glann("--version").stdout == importlib.metadata.version("glann") + "\n"
    assert glann().stdout == glann("--help").stdout


def test_a_gpu_that_torch_cannot_use_is_said_once_where_the_device_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Here nvidia-smi stands for a driver; torch's own CUDA is real and finds no GPU."""
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    save_generator(tmp_path / "g.safetensors")
    path = f"{tmp_path}:{os.environ['PATH']}"
    few = (*SAMPLE, "a.png", "--count", "2")
    if NVIDIA_DRIVER.exists() or torch.version.cuda is None:
        pytest.skip("there is a driver, or torch is built without CUDA")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said = glann(*few, cwd=tmp_path, PATH=path).stderr.splitlines()
    assert len(said) == 2 and said[0].startswith("glann: this runs on the CPU: this machine has an NVIDIA")
    assert f"built for CUDA {torch.version.cuda}" in said[0]
    assert len(glann(*few, "--device", "cpu", cwd=tmp_path, PATH=path).stderr.splitlines()) == 1
    hidden = glann(*few, cwd=tmp_path, PATH=path, CUDA_VISIBLE_DEVICES="")
    assert len(hidden.stderr.splitlines()) == 1  # on purpose
    line = fails_in_one_line(glann(*few, "--device", "cuda", cwd=tmp_path, PATH=path))
    assert "compute.device: cuda, but this machine has an NVIDIA driver" in line


@pytest.mark.parametrize(
    ("asked", "local", "seen", "advice"),
    [
        ("cuda", 0, 0, "compute.device: cuda, but torch sees no GPU; set it to auto or cpu"),
        ("cuda:1", 0, 0, "compute.device: cuda:1, but torch sees no GPU; set it to auto or cpu"),
        ("cuda:5", 0, 2, "torch sees cuda:0 to cuda:1; set it to one of these, or to auto"),
        ("cuda:1", 0, 1, "torch sees cuda:0; set it to one of these, or to auto"),
        (
            "auto",
            2,
            2,
            "compute.processes: process 2 has no GPU of its own, torch sees cuda:0 to cuda:1; set it",
        ),
    ],
)
def test_the_advice_for_a_missing_gpu_fits_those_that_are_there(
    asked: str, local: int, seen: int, advice: str
):
    assert advice in _no_such_gpu(asked, local, seen, "")
