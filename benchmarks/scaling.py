"""Compare the formulas of docs/scaling.md with what runs of 10^4 to 10^6 latents take.

python -m benchmarks.scaling
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.data import latent_cloud
from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.imle.settings import Imle
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.runtime.compute import execution
from glann.runtime.memory import weight_bytes
from glann.runtime.settings import Compute

SIZES = (10_000, 100_000, 1_000_000)
DIM, NOISE, PIXELS = 64, 32, 16
INDEX = {10_000: "Flat", 100_000: "Flat", 1_000_000: "IVF4096,Flat;nprobe=8"}


def peak() -> int:
    """Return the most memory that this process has had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def glo(n: int) -> dict[str, float]:
    """Train one epoch of large batches on n images; return what it took and what the formulas say."""
    run = execution(Compute(device="cpu"))
    decoder, batch = Decoder(width=8), 2500  # so few steps that nobody expects to see what was learned
    train_glo(
        _images(2 * batch), Glo(decoder=decoder, latent_init="random", epochs=1, batch_size=batch), 0, run
    )
    before, images = peak(), _images(n)
    config = Glo(decoder=decoder, latent_init="random", epochs=1, batch_size=batch)
    start = time.perf_counter()
    train_glo(images, config, 0, run)
    seconds = time.perf_counter() - start
    said = (12 * DIM + 4) * n + images.nbytes
    return {"measured": peak() - before, "formula": said, "us": 1e6 * seconds / n}


def imle(n: int) -> dict[str, float]:
    """Fit one epoch of large batches to n latents."""
    run = execution(Compute(device="cpu"))
    config = Imle(noise_dim=NOISE, mapping=Mapping(width=64, depth=1), epochs=1, batch_size=2000)
    fit_imle(latent_cloud(70_000), config, 0, run)  # a whole block of candidates has been searched
    before, latents = peak(), latent_cloud(n)
    start = time.perf_counter()
    fit_imle(latents, config.model_copy(update={"index": INDEX[n]}), 0, run)
    seconds = time.perf_counter() - start
    said = (
        4 * n * (DIM + NOISE) + latents.nbytes + (4 * 2 * n * (2 * DIM + NOISE) if INDEX[n] != "Flat" else 0)
    )
    return {"measured": peak() - before, "formula": said, "us": 1e6 * seconds / n}


def weights() -> list[dict[str, Any]]:
    """Count the weights of the networks that docs/scaling.md works out."""
    rows = []
    for size, width in ((1024, 32), (64, 64)):
        architecture = DecoderArchitecture(config=Decoder(width=width), latent_dim=64, size=size, channels=3)
        with torch.device("meta"):
            network = DecoderNetwork(architecture)
        rows.append(
            {"network": f"decoder {size} px, width {width}", "millions": weight_bytes(network) / 20e6}
        )
    with torch.device("meta"):
        mapping = MappingNetwork(MappingArchitecture(config=Mapping(), noise_dim=NOISE, latent_dim=DIM))
    return [*rows, {"network": "mapping", "millions": weight_bytes(mapping) / 20e6}]


def _images(n: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 255, (n, PIXELS, PIXELS, 1), np.uint8)


def main() -> None:
    """Print a table; every run has a process of its own, since a process's peak never falls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("one", nargs="*", help="a stage and a number of latents: measure just this")
    options = parser.parse_args()
    if options.one:
        stage, n = options.one
        print(json.dumps({"glo": glo, "imle": imle}[stage](int(n))))
        return
    for row in weights():
        print(f"{row['network']}: {row['millions']:.2f} M weights")
    print("| stage | latents | memory measured, MB | formula, MB | time per latent and epoch, µs |")
    print("| --- | --- | --- | --- | --- |")
    for stage in ("glo", "imle"):
        for n in SIZES:
            command = [sys.executable, "-m", "benchmarks.scaling", stage, str(n)]
            said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            measured, formula = (f"{said[key] / 1e6:.0f}" for key in ("measured", "formula"))
            print(f"| {stage} | {n:,} | {measured} | {formula} | {said['us']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
