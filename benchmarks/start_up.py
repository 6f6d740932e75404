"""How long people wait for the commands that they give most often."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        "import glann.generator": [sys.executable, "-c", "import glann.generator"],
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
