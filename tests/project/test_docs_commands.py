"""Every command of README.md and docs/*.md, run in a small clone as a reader would run it, page by page."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import glann_at_once
from conftest import ROOT
from hub_server import TOKEN, hub_server
from pages import PAGES, Command, commands
from PIL import Image
from ruamel.yaml import YAML
from test_conditional_pipeline import DOCUMENTED as WITH_CLASSES
from test_docs import check_value, keys
from tiny_pipeline import TINY

from benchmarks.clone import change, clone_to

# What stands in code blocks and is no command: the drawing of the pipeline.
NOT_COMMANDS = re.compile(r"[─│└┴▶]")

SHELL = re.compile(r"[|&;<>*?~$(\n]")  # what only a shell understands

# What is replaced in a command before it runs, and why.
SUBSTITUTIONS = [
    ("NAME", "mnist", "a placeholder"),
    ("LATENTS.npy", "codes.npy", "a placeholder"),
    ("--nproc-per-node=8", "--nproc-per-node=2", "a machine for tests has two cores"),
    (":29500", ":{port}", "another run may have that port"),
    ("for stage in glo imle", "for stage in imle", "time: test_processes.py runs glo under torchrun"),
    ("glann peers 350", "glann peers 1", "time"),
    # The settings of experiments are checked by a test of their own.
    ("-S glo.latent_dim=48", "-S sample.count=6", "time: one stage runs instead of four"),
    ("-S imle.epochs=120", "-S sample.seed=120", "time: one stage runs instead of three"),
    ("-S imle.candidates=16", "-S sample.seed=16", "time: one stage runs instead of three"),
]

# What a page's preset is made small by, in params.yaml, and where its data are.
LAPLACIAN = {"glo": TINY["glo"] | {"loss": {"kind": "laplacian"}}}  # VGG-16's weights would be downloaded
SMALL = {
    "README.md": TINY | LAPLACIAN,
    "results.md": TINY | LAPLACIAN | {"prepare": {"source": "npy", "path": "digits.npy", "holdout": 24}},
    "architecture.md": TINY,
}

# What cannot be run here, why, and what is run instead to see that it exists.
NOT_RUN = {
    "make repro": ("installs everything; `dvc repro` is run by itself", "make -n repro"),
    "make test": ("these tests themselves", "make -n test"),
    "make bench": ("takes half an hour", "make -n bench"),
    "make test-gpu": ("needs a GPU", "make -n test-gpu"),
    "git checkout ce15e39": ("a clone for tests has no history", "git checkout --help"),
    "dvc repro --force glo": ("time: it is run for prepare", "dvc repro --dry --force glo"),
    "pip install -e '.[priors]'": ("needs the network", "grep '^priors = ' pyproject.toml"),
    "pip install tensorboard": ("needs the network", "grep tensorboard pyproject.toml"),
    "tensorboard --logdir watch/tensorboard": ("serves pages until it is stopped", "tensorboard --version"),
    "pip install .": ("needs the network", "grep '^pipeline = ' pyproject.toml"),
    "pip install onnxruntime": ("needs the network", "grep onnxruntime pyproject.toml"),
    "pip install imageio-ffmpeg": ("needs the network", "grep imageio-ffmpeg pyproject.toml"),
    "pip install -e '.[page]'": ("needs the network", "grep '^page = ' pyproject.toml"),
    "pip install -e '.[export]'": ("needs the network", "grep '^export = ' pyproject.toml"),
    **dict.fromkeys(
        [command for _, command in WITH_CLASSES],
        ("test_conditional_pipeline.py runs it", "glann sample --help"),
    ),
    "pip install -e '.[hub]'": ("needs the network", "grep '^hub = ' pyproject.toml"),
    "hf auth login": ("asks for a token", "hf auth login --help"),
    "hf upload user/faces shared/": ("asks for a token", "hf upload --help"),
    "glann publish": ("names a command", "glann publish --help"),
    "glann walk": ("names a command", "glann walk --help"),
    "glann export": ("names a command", "glann export --help"),
    "pip install -e '.[page,export]'": ("needs the network", "grep '^page = ' pyproject.toml"),
    "glann page": ("serves pages until it is stopped", "glann page --help"),
    "glann export --out generator.html": ("downloads onnxruntime-web", "glann export --help"),
    "glann project": ("names a command", "glann project --help"),
    "glann direction": ("names a command", "glann direction --help"),
    "glann direction --class": ("names an option", "glann direction --help"),
    "glann edit": ("names a command", "glann edit --help"),
    "glann sample --seed 1": ("names what is shown", "glann sample --seed 1 --help"),
    "dvc cache dir DISK/cache": ("moves the cache of the other tests", "dvc cache dir --help"),
    "dvc config cache.type symlink": ("changes the cache of the other tests", "dvc config --help"),
    "dvc config cache.type copy": ("changes the cache of the other tests", "dvc config --help"),
    "dvc unprotect FILE": ("changes the results of the other tests", "dvc unprotect --help"),
    "dvc exp apply NAME": ("names an experiment", "dvc exp apply --help"),
    "glann peers": ("names a command", "glann peers --help"),
    "dvc plots": ("names a group of commands", "dvc plots --help"),
    "glann sample": ("names a command", "glann sample --help"),
    "glann sample --count 1": ("names what was timed", "glann sample --count 1 --help"),
    "torchrun --standalone --nproc-per-node=8 -m stages.glo": (
        "test_processes.py runs it with two processes",
        'grep \'"--standalone", "--nproc-per-node=2", "-m", "stages.glo"\' tests/runtime/test_processes.py',
    ),
    "torchrun --standalone --nproc-per-node=8 -m stages.imle": (
        "time: torchrun runs this stage in the script for Slurm",
        "test -f stages/imle.py",
    ),
}
# These take minutes to hours; their options are checked.
BENCHMARK = re.compile(r"python -m (benchmarks\.\w+)(.*)")

# One machine of a batch system, on which `srun` runs what it is given.
SLURM = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_JOB_ID": "1"}
SHIMS = {"srun": 'exec "$@"', "scontrol": "echo localhost"}

GIVEN_COMMANDS = [command for page in PAGES for command in commands(page)]
RUNNERS = {"bash", "cp", "dvc", "git", "glann", "mkdir", "source"}


class Reader:
    """Somebody with a clone, a folder of pictures and some arrays, who types what the pages say.

    `hub` is the address of what stands for the Hugging Face Hub.
    """

    def __init__(self, folder: Path, hub: str):
        self.project = folder / "project"
        self.project.mkdir()
        clone_to(self.project, TINY)
        rivals = self.project / "peers/params.yaml"  # two of five; other tests train all of them
        rivals.write_text(re.sub(r"(?m)^models: .*", "models: [gan, energy]", rivals.read_text()))
        with (self.project / ".git/config").open("a") as config:  # DVC makes commits of experiments
            config.write("[user]\nname = reader\nemail = reader@example.org\n")
        put_commands(folder / "bin", SHIMS)
        environment = Path(sys.prefix)  # what `make` has installed
        (self.project / ".venv").mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (self.project / ".venv" / name).symlink_to(environment / name)
        pictures = folder / "home/pictures/faces"
        pictures.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(80):
            Image.fromarray(rng.integers(0, 255, (20, 16, 3), np.uint8)).save(pictures / f"{i}.png")
        Image.open(pictures / "0.png").save(self.project / "photo.jpg")
        for name, numbers in {"smiling": range(5), "serious": range(5, 10)}.items():
            (self.project / name).mkdir()
            for i in numbers:
                shutil.copy(pictures / f"{i}.png", self.project / name)
        np.save(self.project / "codes.npy", rng.normal(size=(20, 6)))
        np.save(self.project / "labels.npy", np.arange(20) % 2)
        np.save(self.project / "digits.npy", rng.integers(0, 255, (80, 28, 28), np.uint8))
        path = [str(folder / "bin"), str(environment / "bin"), os.environ["PATH"]]
        self.environment = {
            **os.environ,
            **SLURM,
            "HOME": str(folder / "home"),
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(self.project),
            "HF_ENDPOINT": hub,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "home/huggingface"),
            "HF_HUB_DISABLE_XET": "1",
        }
        self.port = str(free_port())

    def types(self, text: str) -> str:
        """Run a line or script, and return what it says."""
        for what, instead, _ in SUBSTITUTIONS:
            text = text.replace(what, instead.replace("{port}", self.port))
        program, *arguments = shlex.split(text, comments=True)
        if program == "glann" and not SHELL.search(text):  # test_cli.py starts it as a shell does
            result = glann_at_once(*arguments, cwd=self.project, **self.environment)
        else:
            result = subprocess.run(
                ["bash", "-c", text],
                cwd=self.project,
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
            )
        assert result.returncode == 0, f"{text}\n{result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def follows(self, page: Path, already: set[str]) -> None:
        """Run a page's commands, but those already run with the same params.yaml."""
        before = (self.project / "params.yaml").read_text()
        for command in commands(page):
            if command.text in already or not is_run(command):
                continue
            already.add(command.text)
            self.types(command.text)
            if command.text.endswith("> params.yaml"):
                change(self.project, SMALL[page.name])
                already -= {text for text in already if text.startswith("dvc repro")}
        if page.name != "README.md":
            (self.project / "params.yaml").write_text(before)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    with hub_server() as hub:
        yield Reader(tmp_path_factory.mktemp("reader"), hub.address)


@pytest.fixture(scope="module")
def already() -> set[str]:
    return set()


def is_run(command: Command) -> bool:
    return not (NOT_COMMANDS.search(command.text) or command.text in NOT_RUN or BENCHMARK.match(command.text))


@pytest.mark.parametrize(
    "command", GIVEN_COMMANDS, ids=lambda command: f"{command.page}: {command.text[:40]}"
)
def test_it_is_known_how_to_check_each_command(command: Command):
    assert not is_run(command) or command.program in RUNNERS, (
        "add it to RUNNERS, or to NOT_RUN with the reason"
    )


def test_the_tables_have_nothing_that_no_page_says():
    said = "\n".join(command.text for command in GIVEN_COMMANDS)
    assert all(text in said for text in NOT_RUN)
    assert all(what in said for what, _, _ in SUBSTITUTIONS)


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.name
)  # README.md first: others need its results
def test_the_commands_of_a_page_run(page: Path, reader: Reader, already: set[str]):
    if page.name == "library.md":  # its program makes this file
        shutil.copy(
            reader.project / "data/imle/generator.safetensors", reader.project / "generator.safetensors"
        )
    if page.name == "sample.md":
        shutil.copy(reader.project / "data/imle/generator.safetensors", reader.project / "my.safetensors")
    reader.follows(page, already)
    if page.name == "README.md":
        table = reader.types("dvc exp show --csv")
        assert all(f",{seed}," in table for seed in (120, 16)), table  # the queue was worked off
        assert "Failed" not in table and "Queued" not in table
        assert len(list((reader.project / "faces").iterdir())) == 1000
        assert np.load(reader.project / "faces.npy").shape == (1000, 16, 16, 3)


def test_the_script_for_slurm_takes_nothing_over_from_a_stage_that_failed(tmp_path: Path):
    (script,) = {command.text for command in GIVEN_COMMANDS if "srun" in command.text}
    put_commands(tmp_path, SHIMS | {"srun": "exit 1", "dvc": "echo $0 $@"})
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **SLURM, "PATH": path}, capture_output=True, check=False
    )
    (line,) = result.stdout.decode().splitlines()  # neither glo nor what follows it
    assert result.returncode == 1 and line.endswith("dvc repro prepare")


@pytest.mark.parametrize("text", NOT_RUN)
def test_what_is_not_run_exists(text: str, reader: Reader):
    _, check = NOT_RUN[text]
    reader.types(check)


def test_benchmarks_that_pages_name_have_the_options_given(reader: Reader):
    named = [found.groups() for command in GIVEN_COMMANDS if (found := BENCHMARK.match(command.text))]
    modules = {module for module, _ in named}
    code = (
        "import contextlib, runpy, sys\n"
        f"for sys.argv in {[[module, '--help'] for module in sorted(modules)]}:\n"
        "    print('=====', flush=True)\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        runpy.run_module(sys.argv[0], run_name='__main__')\n"
    )
    texts = reader.types(f"python -c {shlex.quote(code)}").split("=====\n")[1:]
    help_of = dict(zip(sorted(modules), texts, strict=True))
    for module, options in named:
        assert "usage:" in help_of[module]
        assert all(option in help_of[module] for option in re.findall(r"--[\w-]+", options))


def test_settings_of_experiments_are_changes_of_the_default():
    default = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    given = [found for command in GIVEN_COMMANDS for found in re.findall(r"-S (\S+)=(\S+)", command.text)]
    assert given
    for key, value in given:
        assert key in keys()
        check_value(key, value)
        found = default
        for name in key.split("."):
            found = found[name]
        assert found != YAML(typ="safe").load(value), f"{key}={value} is what params.yaml has"


def put_commands(folder: Path, texts: dict[str, str]) -> None:
    """Put shell scripts into a folder that is to be first on the path."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
