"""A pipeline that runs in seconds, and DVC in it."""

import subprocess
from pathlib import Path

from benchmarks.clone import dvc as start_dvc
from glann.runtime.files import STAGES

TINY = {
    "compute": {"device": "cpu", "precision": "float32", "threads": 1, "checkpoint_minutes": 0},
    "prepare": {"count": 72, "resolution": 16, "holdout": 24},
    "glo": {"latent_dim": 8, "decoder": {"width": 8}, "epochs": 2, "batch_size": 16},
    "imle": {"noise_dim": 4, "mapping": {"width": 16, "depth": 1}, "epochs": 2},
    "sample": {"count": 5, "interpolations": 2, "interpolation_steps": 3},
    "evaluate": {"features": "pixels", "count": 32, "mixture_components": 2},
}


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with start_dvc(folder, *arguments) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def repro(folder: Path, *arguments: str) -> list[str]:
    """Run `dvc repro` and return the stages that it ran."""
    result = dvc(folder, "repro", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return [stage for stage in STAGES if f"Running stage '{stage}'" in result.stdout]
