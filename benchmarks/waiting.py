"""Waiting times: of frequent commands, and of checkpoints."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glann.glo.train import train_glo
from glann.presets import preset
from glann.runtime.compute import execution
from glann.runtime.settings import Compute
from glann.training.checkpoints import Checkpoints

Row = dict[str, Any]


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def start_up() -> list[Row]:
    """Return the median of three times of each command."""
    commands = {
        "glann --help": ["glann", "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import faiss": [sys.executable, "-c", "import faiss"],
        "import glann.sample.generator": [sys.executable, "-c", "import glann.sample.generator"],
        "glann sample --count 1": ["glann", "sample", "--count", "1", "--out"],
        "dvc --version": ["dvc", "--version"],
        "dvc repro, nothing to do": ["dvc", "repro"],
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands.items():
            if command[-1] == "--out":
                if not Path("data/imle/generator.safetensors").is_file():
                    continue
                command.append(f"{folder}/one.png")
            seconds = [
                timed(lambda c=command: subprocess.run(c, capture_output=True, check=True)) for _ in range(3)
            ]
            rows.append({"what": name, "ours": f"{statistics.median(seconds):.2f} s"})
    return rows


class TimedCheckpoints(Checkpoints):
    """Saves every 60 steps, and records how long training waits for it."""

    def __init__(self, folder: str):
        super().__init__(folder, "glo", "timed", minutes=1)
        self.times: list[float] = []
        self.asked = 0.0

    def due(self, step: int) -> bool:
        """Return whether it is a sixtieth step."""
        self.asked = time.perf_counter()
        return step % 60 == 0

    def save(self, tensors: dict[str, Any], position: Any) -> None:
        """Save, and record the seconds since `due` was called."""
        super().save(tensors, position)
        self.times.append(time.perf_counter() - self.asked)


def checkpoint(threads: int) -> list[Row]:
    """Time checkpoints of `glo` at the default settings, on the disk of the current folder."""
    params = preset("avatars")
    minutes, images = params.compute.checkpoint_minutes, params.prepare.count - params.prepare.holdout
    config = params.glo.model_copy(update={"epochs": 2})
    noise = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoints = TimedCheckpoints(folder)
        train_glo(noise, config, 0, execution(Compute(device="cpu", threads=threads)), checkpoints)
        size = checkpoints.path.stat().st_size
    seconds = statistics.median(checkpoints.times[:-1])  # the last one ends the run
    note = f"{size / 1e6:.0f} MB; every {minutes:g} minutes that is {seconds / 60 / minutes:.3%} of the time"
    return [{"what": "checkpoint of glo, default settings", "ours": f"{seconds:.2f} s", "note": note}]
