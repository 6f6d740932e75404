"""Speed on the CPU against the plain reference, each comparison inside one run (on GPUs: benchmarks.gpu).

`make bench`, or ``python -m benchmarks.bench NAME ...``, prints a table and writes benchmarks/results.json.
GLANN_VGG_WEIGHTS names VGG-16 weights for the perceptual loss; without, random ones are used, with which a
step takes as long.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16 as torchvision_vgg16

from benchmarks.data import digits, latent_cloud
from benchmarks.waiting import Row, checkpoint, start_up, timed
from glann.glo.latents import LatentTable, initial_latents
from glann.glo.losses import l1, reconstruction_loss
from glann.glo.settings import Glo, Loss
from glann.glo.train import train_glo
from glann.images.tensors import to_float, upload
from glann.imle.calibration import fit_range
from glann.imle.fit import fit_imle
from glann.imle.matching import Group, map_candidates, noise_blocks
from glann.imle.settings import Imle
from glann.neighbors.search import nearest, nearest_in_blocks
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.runtime.compute import Execution, execution
from glann.runtime.files import save_json
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.tensors import save_tensors
from glann.sample.generator import Generator
from glann.sample.saving import save_images
from glann.training.optimization import adam, step
from glann.training.shards import Shard

BATCH = 128


class Clock:
    """Takes the place of checkpoints: it is asked after every step, and records the time."""

    path = Path("none")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.steps = 0

    def load(self, _: Any) -> None:
        """Return None: there is nothing to resume from."""

    def due(self, _: int) -> bool:
        """Record the time; never save."""
        self.times.append(time.perf_counter())
        return False

    def save(self, _: Any, position: dict[str, int]) -> None:
        """Record, at the end, how many steps an epoch has."""
        self.steps = position["steps"]

    def epoch(self) -> float:
        """Return the median seconds of an epoch; the first, which warms up, is left out."""
        return statistics.median(np.diff(self.times[self.steps - 1 :: self.steps]))


def gemm_peak(dtype: torch.dtype, size: int = 4096) -> float:
    """Return the speed of a square matrix product, FLOP/s."""
    a, b = torch.randn(2, size, size).to(dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def vgg_weights(folder: str) -> str:
    """Return the user's VGG-16 weights file, or one of random weights."""
    given = os.environ.get("GLANN_VGG_WEIGHTS")
    if given:
        return given
    features = torchvision_vgg16(weights=None).features
    initialize(features, stream(0, "vgg"))
    path = f"{folder}/vgg16.safetensors"
    save_tensors(path, features.state_dict())
    return path


def against_reference(
    train: Callable[[Clock], float], arguments: list[str], rounds: int
) -> tuple[float, float, float, str]:
    """Train alternately with the reference, which runs in its own process with default settings of torch.

    Parameters
    ----------
    train
        Trains, asking the clock after each step, and returns the last epoch's loss.
    arguments
        Of the same run by benchmarks.reference.
    rounds
        How often.

    Returns
    -------
    tuple
        Seconds an epoch, the reference's, their ratio (medians), and both last losses as a text.
    """
    command = [sys.executable, "-m", "benchmarks.reference", *arguments]
    ours, theirs, losses = [], [], ""
    for _ in range(rounds):
        clock = Clock()
        loss = train(clock)
        ours.append(clock.epoch())
        said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        theirs.append(said["seconds"])
        losses = f"loss {loss:.4f} / {said['loss']:.4f}"
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return statistics.median(ours), statistics.median(theirs), ratio, losses


def glo(kind: str, run: Execution, threads: int, rounds: int, epochs: int) -> list[Row]:
    """Time GLO on digits with the paper's 28 px decoder, and compare the losses after equal steps."""
    images = digits()
    arguments = ["glo", f"--epochs={epochs}", f"--threads={threads}"]
    with tempfile.TemporaryDirectory() as folder:
        loss = Loss(kind="l1")
        if kind == "perceptual":
            loss = Loss(kind="perceptual", weights=vgg_weights(folder))
            arguments.append(f"--vgg={loss.weights}")
        decoder = Decoder(kind="infogan", width=64)
        config = Glo(
            decoder=decoder, loss=loss, latent_noise=0, epochs=epochs, batch_size=BATCH, schedule="constant"
        )

        def train(clock: Clock) -> float:
            return train_glo(images, config, 0, run, clock).history[-1]["loss"]  # type: ignore[arg-type]

        ours, theirs, ratio, losses = against_reference(train, arguments, rounds)
        flops = glo_flops(images, config, run)
    speed, peak = len(images) / ours, gemm_peak(run.precision)
    return [
        {
            "what": f"GLO step, {kind} loss, 28 px",
            "ours": f"{speed:.0f} images/s",
            "reference": f"{len(images) / theirs:.0f} images/s",
            "ratio": ratio,
            "note": f"{losses}; {flops / 1e9:.3f} GFLOP an image, "
            f"{speed * flops / peak:.0%} of the GEMM peak of {peak / 1e9:.0f} GFLOP/s",
        }
    ]


def glo_flops(images: NDArray[np.uint8], config: Glo, run: Execution) -> float:
    """Count the floating-point operations of a step, per image."""
    architecture = DecoderArchitecture(
        config=config.decoder, latent_dim=config.latent_dim, size=28, channels=1
    )
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(0, "glo", "decoder"))
    some = images[:BATCH]
    loss_of = reconstruction_loss(config.loss, run, some)
    table = LatentTable(initial_latents(some, config, 0, 0, BATCH), Shard(BATCH, BATCH))
    rows = torch.arange(BATCH)
    with FlopCounterMode(display=False) as counter, run.autocast():
        targets = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255
        loss_of(decoder(table.rows(rows)), targets, rows, loss_of.draw(stream(0, "x"), 0.0)).backward()
    return counter.get_total_flops() / BATCH


def latent_table(run: Execution) -> list[Row]:
    """Time steps with ten thousand and with a million latents of 64 numbers, one of each in turn."""
    config = Glo(decoder=Decoder(width=8))
    decoder = DecoderNetwork(DecoderArchitecture(config=config.decoder, latent_dim=64, size=16, channels=1))
    initialize(decoder, stream(0, "d"))
    decoder.to(memory_format=torch.channels_last)
    optimizer = adam(decoder.network, config.decoder_lr, [])
    sizes = (10_000, 1_000_000)
    tables = {n: LatentTable(latent_cloud(n), Shard(n, BATCH)) for n in sizes}
    images = {n: np.random.default_rng(0).integers(0, 256, (n, 16, 16, 1), np.uint8) for n in sizes}
    batches = {n: itertools.cycle(Shard(n, BATCH).batches(0, "order")) for n in sizes}

    def one_step(n: int) -> None:
        rows, _ = next(batches[n])
        targets = to_float(upload(images[n][rows.numpy()], run))
        latents = tables[n].rows(rows)
        with run.autocast():
            loss = l1(decoder(latents), targets)
        loss.backward()
        step(optimizer, config.decoder_lr)
        tables[n].step(rows, latents, config.latent_lr, len(rows))

    seconds: dict[int, list[float]] = {n: [] for n in sizes}
    for _ in range(1500):
        for n in sizes:
            seconds[n].append(timed(lambda n=n: one_step(n)))
    few, many = (statistics.median(seconds[n]) for n in sizes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        {
            "what": "GLO step, 1,000,000 latents against 10,000",
            "ours": f"{1000 * many:.2f} ms",
            "reference": f"{1000 * few:.2f} ms",
            "ratio": many / few,
            "note": f"d = 64, 16 px; peak memory {peak:.1f} GiB, of which the table 0.75 and the images 0.25",
        }
    ]


def imle(n: int, run: Execution, threads: int, epochs: int, rounds: int) -> list[Row]:
    """Time epochs of IMLE with exact search, and the search by itself."""
    latents = latent_cloud(n)
    config = Imle(epochs=epochs, schedule="constant", loss="squared")  # as the reference

    def train(clock: Clock) -> float:
        return fit_imle(latents, config, 0, run, clock).history[-1]["loss"]  # type: ignore[arg-type]

    arguments = ["imle", f"--n={n}", f"--epochs={epochs}", f"--threads={threads}"]
    ours, theirs, ratio, losses = against_reference(train, arguments, rounds)
    candidates = latent_cloud(2 * n, seed=1)
    search = min(
        timed(lambda: nearest_in_blocks(latents, [(candidates, candidates)], precision=run.precision))
        for _ in range(3)
    )
    peak = gemm_peak(torch.float32)
    return [
        {
            "what": f"IMLE epoch, {n} latents",
            "ours": f"{ours:.2f} s",
            "reference": f"{theirs:.2f} s",
            "ratio": ratio,
            "note": f"{losses}; search {search:.2f} s, "
            f"{4 * n * n * 64 / search / peak:.0%} of the float32 GEMM peak of {peak / 1e9:.0f} GFLOP/s",
        }
    ]


def approximate(n: int, index: str, run: Execution) -> list[Row]:
    """Time an approximate index against exact search of a slice of the queries, and compare distances."""
    latents = latent_cloud(n)
    result = fit_imle(latents[:20_000], Imle(epochs=5), 0, run)
    blocks = noise_blocks(Group(None, slice(None), 2 * n), 32, 1, 0, run)
    candidates = torch.cat([map_candidates(result.mapping, block, run) for block in blocks])
    part = latents[:10_000]
    start = time.perf_counter()
    best, _ = nearest(part, candidates)
    exact = (time.perf_counter() - start) * n / len(part)
    start = time.perf_counter()
    found, _ = nearest(latents, candidates, index=index)
    seconds = time.perf_counter() - start
    excess = found[: len(part)].clamp_min(0).sqrt().mean() / best.clamp_min(0).sqrt().mean() - 1
    agree = ((found[: len(part)] - best) < 1e-5).float().mean()
    return [
        {
            "what": f"IMLE search, {n} latents, {index}",
            "ours": f"{seconds:.1f} s",
            "reference": f"{exact:.0f} s",
            "ratio": exact / seconds,
            "note": f"exact search timed on {len(part)} queries, extrapolated; mean distance {excess:+.2%}, "
            f"recall {agree:.1%}",
        }
    ]


def sampling(path: str | None, run: Execution, count: int) -> list[Row]:
    """Time 10,000 images to PNG files and to an array against the decoder's bare forward pass."""
    if path:
        generator = Generator.load(path)
    else:
        decoder = DecoderNetwork(DecoderArchitecture(config=Decoder(), latent_dim=64, size=64, channels=3))
        mapping = MappingNetwork(MappingArchitecture(config=Mapping(), noise_dim=32, latent_dim=64))
        initialize(decoder, stream(0, "d"))
        initialize(mapping, stream(0, "m"))
        fit_range(mapping, latent_cloud(100))
        generator = Generator(mapping, decoder, run)
    latents = generator.sample_latents(64)

    @torch.no_grad()
    def forward() -> None:
        with run.autocast():
            for _ in range(-(-count // len(latents))):
                generator.decoder(latents)

    seconds: dict[str, list[float]] = {"forward": [], "png": [], "npy": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            seconds["forward"].append(timed(forward))
            for name, out in (("png", Path(folder) / f"images{i}"), ("npy", Path(folder) / "images.npy")):
                seconds[name].append(timed(lambda out=out: save_images(generator.stream(count), out)))
    bare = statistics.median(seconds["forward"])
    return [
        {
            "what": f"sampling {count} images to {name}",
            "ours": f"{count / statistics.median(seconds[name]):.0f} images/s",
            "reference": f"{count / bare:.0f} images/s",
            "ratio": statistics.median(a / b for a, b in zip(seconds["forward"], seconds[name], strict=True)),
            "note": "the reference is the decoder's forward pass alone",
        }
        for name in ("png", "npy")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run (default: all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--generator", help="generator.safetensors whose sampling is timed (default: untrained)"
    )
    parser.add_argument("--index", default="IVF4096,Flat;nprobe=8", help="Faiss index of `approximate`")
    given = parser.parse_args()
    threads = given.threads
    run = execution(Compute(device="cpu", threads=threads))
    faiss.omp_set_num_threads(threads)
    benchmarks: dict[str, Callable[[], list[Row]]] = {
        "glo-perceptual": lambda: glo("perceptual", run, threads, rounds=2, epochs=4),
        "glo-l1": lambda: glo("l1", run, threads, rounds=3, epochs=20),
        "latent-table": lambda: latent_table(run),
        "imle-10k": lambda: imle(10_000, run, threads, epochs=12, rounds=3),
        "imle-60k": lambda: imle(60_000, run, threads, epochs=3, rounds=2),
        "approximate": lambda: approximate(1_000_000, given.index, run),
        "sampling": lambda: sampling(given.generator, run, 10_000),
        "start-up": start_up,
        "checkpoint": lambda: checkpoint(threads),
    }
    unknown = set(given.names) - set(benchmarks)
    if unknown:
        parser.error(f"no benchmark called {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    table = Table("what", "this", "reference", "ratio", "note")
    out = Path(__file__).parent / "results.json"
    machine = {"threads": threads, "torch": torch.__version__, "precision": str(run.precision)}
    results = {}
    for name in given.names or benchmarks:
        results[name] = benchmarks[name]()
        save_json(out, {"machine": machine, "results": results})
        for row in results[name]:
            ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
            table.add_row(row["what"], row["ours"], row.get("reference", ""), ratio, row.get("note", ""))
    Console().print(table)


if __name__ == "__main__":
    main()
