"""Check this project on a machine with NVIDIA GPUs, and measure how fast it is there.

`make test-gpu` runs the tests that need a GPU, the default pipeline, and timings on GPU and CPU. All of it
goes into gpu-report.txt: the machine, versions, results and figures.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.bench import Clock, vgg_weights
from benchmarks.clone import ROOT, change, clone_to, dvc
from benchmarks.data import latent_cloud
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.imle.settings import Imle
from glann.neighbors.search import nearest
from glann.presets import params_yaml, preset
from glann.runtime.compute import Execution, cores, execution
from glann.runtime.settings import Compute
from glann.sample.generator import Generator

REPORT = Path("gpu-report.txt")


@dataclass(frozen=True)
class Sizes:
    """How much work each timing is.

    Attributes
    ----------
    images, batch
        Images of 64 px, and of a step of GLO.
    epochs
        Of each training, the first of which is not counted.
    latents
        Latents that IMLE fits, and that are searched, exactly and approximately.
    samples
        Images to draw.
    """

    images: int = 2048
    batch: int = 128
    epochs: int = 4
    latents: int = 60_000
    samples: int = 4096


GPU_SIZES, CPU_SIZES = Sizes(), Sizes(images=256, epochs=2, samples=256)


def timings(on: Execution, sizes: Sizes) -> dict[str, float]:
    """Return images, latents or samples per second, by what was timed."""
    images = np.random.default_rng(0).integers(0, 256, (sizes.images, 64, 64, 3), np.uint8)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, weights in (("faces64", vgg_weights(folder)), ("avatars", None)):
            config = preset(name).glo
            loss = config.loss.model_copy(update={"weights": weights, "coarse": 0.0})
            changes = {
                "loss": loss,
                "epochs": sizes.epochs,
                "batch_size": sizes.batch,
                "latent_init": "random",
            }
            clock = Clock()
            trained = train_glo(images, config.model_copy(update=changes), 0, on, clock)  # type: ignore[arg-type]
            what = f"glo, {config.decoder.kind} decoder, {loss.kind} loss: images/s"
            found[what] = sizes.images / clock.epoch()
    latents, clock = latent_cloud(sizes.latents), Clock()
    fit = Imle(epochs=sizes.epochs + 1, refresh=sizes.epochs + 1)
    mapping = fit_imle(latents, fit, 0, on, clock).mapping  # type: ignore[arg-type]
    found["imle, regression: latents/s"] = sizes.latents / clock.epoch()
    queries, candidates = latents.to(on.device), latent_cloud(2 * sizes.latents, seed=1).to(on.device)
    for name, index in (("exact", "Flat"), ("IVF", f"IVF{max(8, sizes.latents // 50)},Flat;nprobe=8")):
        seconds = min(waited(lambda index=index: nearest(queries, candidates, index=index)) for _ in range(3))
        found[f"imle, search, {name}: latents/s"] = sizes.latents / seconds
    generator = Generator(mapping, trained.decoder, on)
    generator.sample(64)
    found["sample: images/s"] = sizes.samples / waited(lambda: generator.sample(sizes.samples))
    return found


def waited(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes, until the GPU has done what it started."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(columns: dict[str, dict[str, float]]) -> str:
    """Return timings as a text table, with the ratio of the first column to the last."""
    first, *_, last = columns
    lines = [f"{'':58}" + "".join(f"{name:>16}" for name in columns) + f"{'ratio':>8}"]
    for what in columns[first]:
        numbers = "".join(f"{values[what]:>16,.0f}" for values in columns.values())
        lines.append(f"{what:58}{numbers}{columns[first][what] / columns[last][what]:>8.1f}")
    return "\n".join(lines)


def machine() -> str:
    """Return what this machine is, and the versions of what runs on it, as lines of text."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    lines = [
        *(f"GPU {i}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for i, gpu in enumerate(gpus)),
        f"driver: {driver()}",
        f"CPU: {processor()}, {cores()} cores",
        f"Python {platform.python_version()}, torch {torch.__version__} (CUDA {torch.version.cuda}), "
        f"Faiss {faiss.__version__}, which sees {faiss.get_num_gpus()} GPUs",
        f"commit: {said('git', 'rev-parse', 'HEAD')}",
    ]
    return "\n".join(lines)


def driver() -> str:
    """Return the version of NVIDIA's driver."""
    return said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor()
    )


def said(*command: str) -> str:
    """Return what a command prints, or that it failed."""
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({error})"


def tests() -> tuple[bool, str]:
    """Run the tests that need a GPU; return whether they passed, and what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout[-20_000:].strip()


def pipeline(settings: dict[str, Any]) -> tuple[bool, str]:
    """Run the default pipeline in a copy of this project; return whether it worked, and its figures.

    `settings` are what its params.yaml has instead of the defaults.
    """
    with tempfile.TemporaryDirectory() as folder:
        project = clone_to(Path(folder) / "project", {})
        (project / "params.yaml").write_text(params_yaml(preset("avatars")))
        change(project, settings)
        start = time.perf_counter()
        with dvc(project, "repro") as process:
            printed, errors = process.communicate()
        seconds = time.perf_counter() - start
        if process.returncode:
            return False, f"{printed}\n{errors}"[-5000:]
        metrics = json.loads((project / "data/evaluate/metrics.json").read_text())
        stages = [line for line in errors.splitlines() if " took " in line or " in " in line]
    rows = (
        f"{name}: Frechet {metrics[name]['frechet']:.2f}, precision {metrics[name]['precision']:.3f}, "
        f"recall {metrics[name]['recall']:.3f}"
        for name in ("train", "reconstructions", "glann")
    )
    return True, "\n".join([f"{seconds:.0f} s", *rows, *stages])


def compared(device: str, gpu: Sizes, cpu: Sizes) -> tuple[bool, str]:
    """Time everything on a device, with and without recorded steps, and on the CPU."""
    threads = min(cores(), 16)
    columns = {
        name: timings(execution(Compute(device=on, threads=threads, cuda_graphs=recorded)), sizes)
        for name, on, recorded, sizes in (
            ("GPU", device, True, gpu),
            ("no recording", device, False, gpu),
            ("CPU", "cpu", True, cpu),
        )
    }
    return True, f"the CPU has {threads} threads\n{table(columns)}"


def report(parts: dict[str, Callable[[], tuple[bool, str]]], out: Path) -> bool:
    """Write the report, part by part; return whether all checks passed.

    Parameters
    ----------
    parts
        By title: what checks or measures, and returns whether it worked, and its results.
    out
        The file.
    """
    texts, passed = [f"glann on GPUs, {time.strftime('%Y-%m-%d')}", machine()], True
    for title, work in parts.items():
        print(f"{title} ...", flush=True)
        start = time.perf_counter()
        try:
            worked, text = work()
        except Exception:  # the other parts are worth having
            worked, text = False, traceback.format_exc()
        passed &= worked
        seconds = time.perf_counter() - start
        texts.append(f"== {title}: {'passed' if worked else 'FAILED'}, {seconds:.0f} s\n{text}")
        out.write_text("\n\n".join(texts) + "\n")
    return passed


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        sys.exit("test-gpu: torch sees no GPU on this machine; see docs/gpu.md")
    passed = report(
        {
            "tests that need a GPU": tests,
            "default pipeline": lambda: pipeline({}),
            "timings": lambda: compared("cuda", GPU_SIZES, CPU_SIZES),
        },
        REPORT,
    )
    print(f"{REPORT.read_text()}\nwritten to {REPORT}")
    sys.exit(0 if passed else "test-gpu: something failed; the report says what")


if __name__ == "__main__":
    main()
