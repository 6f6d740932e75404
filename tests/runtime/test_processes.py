"""Several processes, started by the stages themselves and by torchrun."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from training_project import INFOGAN, losses, project, run, run_at_once, start, wait_for

from glann.runtime.tensors import load_tensors


@pytest.mark.parametrize("changes", [{}, INFOGAN], ids=["residual", "batch norm"])
def test_two_processes_compute_what_one_does(changes: dict, shapes: np.ndarray, tmp_path: Path):
    one = project(tmp_path / "one", shapes, changes)
    two = project(tmp_path / "two", shapes, changes, processes=2)
    for stage in ("glo", "imle"):
        run_at_once(one, stage)
        run(two, f"stages.{stage}")
        if stage == "glo":  # each stage is compared from equal inputs
            # Sums in another order differ in the last place of float32, and 50 steps of Adam let that grow.
            assert np.load(two / "data/glo/latents.npy") == pytest.approx(
                np.load(one / "data/glo/latents.npy"), abs=1e-2
            )
            shutil.copytree(one / "data/glo", two / "data/glo", dirs_exist_ok=True)
        # A wrong mean over processes would show in the first epoch; later, batch normalisation lets the
        # difference grow, by how much depends on the processor.
        assert losses(two, stage)[:3] == pytest.approx(losses(one, stage)[:3], rel=1e-4)
        assert losses(two, stage) == pytest.approx(losses(one, stage), rel=0.05)
    tensors, architecture = load_tensors(two / "data/imle/generator.safetensors")
    expected, same = load_tensors(one / "data/imle/generator.safetensors")
    assert architecture == same and tensors.keys() == expected.keys()


def test_two_processes_in_bfloat16_learn_what_one_does(shapes: np.ndarray, tmp_path: Path):
    half = {"compute": {"precision": "bfloat16"}}
    one, two = project(tmp_path / "one", shapes, half), project(tmp_path / "two", shapes, half, processes=2)
    for stage in ("glo", "imle"):
        run_at_once(one, stage)
        run(two, f"stages.{stage}")
        first, last = losses(one, stage)[0], losses(one, stage)[-1]
        # Products are rounded to 8 bits: the first epochs agree, later ones learn as much.
        assert losses(two, stage)[0] == pytest.approx(first, rel=1e-3)
        assert abs(losses(two, stage)[-1] - last) < 0.1 * (first - last)
        shutil.copytree(one / "data/glo", two / "data/glo", dirs_exist_ok=True)


def test_torchrun_starts_the_same_stages(shapes: np.ndarray, tmp_path: Path):
    two = project(tmp_path / "two", shapes, processes=2)
    other = project(tmp_path / "torchrun", shapes)
    run(two, "stages.glo")
    run(other, "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages.glo")
    assert (two / "data/glo/latents.npy").read_bytes() == (other / "data/glo/latents.npy").read_bytes()


def test_processes_on_the_cpu_of_a_machine_with_a_gpu_exchange_through_gloo(
    shapes: np.ndarray, tmp_path: Path
):
    folder = project(tmp_path / "two", shapes, {"glo": {"epochs": 1}}, processes=2)
    # torch sees a GPU, as far as forming a group goes.
    (folder / "sitecustomize.py").write_text(
        "import torch, torch.distributed as dist\n"
        "from contextlib import ExitStack\n"
        "from unittest.mock import patch\n"
        "def init(*arguments, real=dist.init_process_group, **options):\n"
        "    gpu = lambda *_, **__: torch.device('cuda')\n"
        "    names = '_C._get_accelerator', 'accelerator.current_accelerator', 'cuda.is_available'\n"
        "    with ExitStack() as stack:\n"
        "        [stack.enter_context(patch(f'torch.{name}', gpu)) for name in names]\n"
        "        real(*arguments, **options)\n"
        "dist.init_process_group = init\n"
    )
    process = start(folder, "stages.glo", path=f"{folder}{os.pathsep}{ROOT}")
    assert process.wait(60) == 0, process.stderr.read()


@pytest.mark.gpu
def test_a_group_on_a_gpu_ends_as_a_run_without_a_group_does(shapes: np.ndarray, tmp_path: Path):
    """With both backends; a group of one sums nothing, which test_gpu.py does with two GPUs."""
    for stage in ("glo", "imle"):
        folder = project(tmp_path, shapes, {"compute": {"device": "cuda"}})
        run(folder, "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", f"stages.{stage}")
        assert losses(folder, stage)


def test_a_killed_process_ends_the_run_with_one_line(shapes: np.ndarray, tmp_path: Path):
    folder = project(
        tmp_path / "two", shapes, {"glo": {"epochs": 100_000}}, processes=2, checkpoint_minutes=0
    )
    process = start(folder, "stages.glo")
    wait_for(lambda: any((folder / ".checkpoints").glob("glo-*")))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    victim = [pid for pid in children if b"stages.glo" in Path(f"/proc/{pid}/cmdline").read_bytes()][1]
    os.kill(int(victim), signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(30) == 1 and time.monotonic() - killed < 30
    said = [line for line in process.stderr.read().splitlines() if not line.startswith("glo:")]
    assert len(said) == 1 and re.match(r"glann: process 1 was killed by SIGKILL", said[0]), said
    assert not list(folder.glob("data/glo/*"))


def test_without_the_starting_process_no_other_stays(shapes: np.ndarray, tmp_path: Path):
    folder = project(tmp_path / "two", shapes, {"glo": {"epochs": 100_000}}, processes=2)
    process = start(folder, "stages.glo")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def ranks() -> list[Path]:
        paths = [Path("/proc") / pid for pid in children.read_text().split()]
        return [path for path in paths if b"stages.glo" in (path / "cmdline").read_bytes()]

    wait_for(lambda: len(ranks()) == 2)
    left = ranks()
    process.kill()
    process.wait()
    wait_for(lambda: not any(path.exists() for path in left))


def test_what_one_process_complains_of_is_said_once(shapes: np.ndarray, tmp_path: Path):
    folder = project(tmp_path / "two", shapes, {"glo": {"batch_size": 2}}, processes=2)
    process = start(folder, "stages.glo")
    assert process.wait(60) == 1
    said = process.stderr.read().splitlines()
    assert said == [
        "glann: glo.batch_size or imle.batch_size: batches of 2 rows are too small for 2 processes; "
        "raise it to 4 or more, or lower compute.processes"
    ]


def test_an_unforeseen_failure_of_one_process_is_said_with_its_traceback(shapes: np.ndarray, tmp_path: Path):
    folder = project(tmp_path / "two", shapes, processes=2)
    (folder / "sitecustomize.py").write_text(
        "import os, glann.glo.train\n"
        "def broken(*_):\n"
        "    if os.environ.get('RANK') == '1':\n"
        "        raise KeyError('nobody expects this')\n"
        "    return real(*_)\n"
        "real, glann.glo.train.initial_latents = glann.glo.train.initial_latents, broken\n"
    )
    process = start(folder, "stages.glo", path=f"{folder}{os.pathsep}{ROOT}")
    assert process.wait(60) == 1
    said = process.stderr.read()
    assert "in broken" in said and "glann: process 1 failed: KeyError: 'nobody expects this'" in said
