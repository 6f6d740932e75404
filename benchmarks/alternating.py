"""The usual form of two training steps of `glann.peers`, to compare with in gradients and in speed.

A GAN is usually trained by two losses in turn, each with images drawn for it. `GanStep` draws and judges each
image once. O-GAN's published code judges training images, images that the decoder draws, and these once more
without a path to the decoder, all in one loss; `OganStep` judges each image once.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.data import digits
from glann.glo.settings import Loss
from glann.networks.decoders.network import DecoderArchitecture
from glann.networks.decoders.settings import Decoder
from glann.peers.gan import GanStep
from glann.peers.ogan import OganStep, centred
from glann.peers.settings import Gan, Ogan, Peer
from glann.peers.step import PeerStep, squared_slope
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute
from glann.training.batches import Inputs, read_ahead
from glann.training.course import Batch
from glann.training.shards import Shard

BATCH = 64
STEPS = 8  # of one form before those of the other: a multiple of the steps between two penalties
WARM_UP = 1  # pairs that are not counted


def gan_discriminator(step: GanStep, x: Inputs) -> Tensor:
    """Compute the discriminator's gradients, on images without a path to the decoder; return its loss."""
    with torch.no_grad():
        made = step.draw(x["noise"]).float()
    penalised = "penalty" in x
    real = step.real(x).requires_grad_(penalised)
    of_real, of_made = step.judge(torch.cat([real, made])).chunk(2)
    loss = F.softplus(-of_real).mean() + F.softplus(of_made).mean()
    penalty = x["penalty"] * squared_slope(of_real, real).mean() if penalised else 0.0
    ((loss + penalty) * x["weight"]).backward(inputs=[*step.networks["judge"].parameters()])
    return loss


def gan_decoder(step: GanStep, x: Inputs) -> None:
    """Compute the decoder's gradients by passes of its own through both networks."""
    loss = F.softplus(-step.judge(step.draw(x["noise"]))).mean()
    (loss * x["weight"]).backward(inputs=[*step.decoder.parameters()])


def gan_gradients(step: GanStep, x: Inputs) -> Tensor:
    """Compute what `GanStep.gradients` does, at the same weights; return the discriminator's loss."""
    loss = gan_discriminator(step, x)
    gan_decoder(step, x)
    return loss


def ogan_gradients(step: OganStep, x: Inputs) -> Tensor:
    """Compute what `OganStep.gradients` does, with three passes through the judge; return the loss."""
    real, made = step.real(x), step.draw(x["noise"]).float()
    of_real, of_made, of_detached = (step.judge(images) for images in (real, made, made.detach()))
    gap = of_real.mean(dim=1) - of_detached.mean(dim=1)
    pushed = of_made.mean(dim=1) - of_detached.mean(dim=1)  # its gradient in the judge's weights is zero
    apart = (2 * (real - made.detach())).square().flatten(1).mean(dim=1)  # of pixels in [-1, 1]
    weight = step.config.weight(step.architecture.config)
    correlation = weight * F.cosine_similarity(centred(x["noise"]), centred(of_made))
    loss = (gap + pushed + gap.square() / (4 * apart + 1e-6) - correlation).mean()
    (loss * x["weight"]).backward()
    return loss


def gan_steps(step: GanStep, x: Inputs) -> None:
    """Step the discriminator, then the decoder."""
    gan_discriminator(step, x)
    step.update(x)
    gan_decoder(step, x)
    step.update(x)
    step.average.update(step.decoder, x["share"])


def ogan_step(step: OganStep, x: Inputs) -> None:
    """Step both networks on the loss of the published code."""
    ogan_gradients(step, x)
    step.update(x)
    step.average.update(step.decoder, x["share"])


FORMS: dict[str, tuple[type[PeerStep], Peer, Callable[..., None]]] = {
    "gan": (GanStep, Gan(batch_size=BATCH), gan_steps),
    "ogan": (OganStep, Ogan(batch_size=BATCH), ogan_step),
}
SETTINGS = {
    28: (Decoder(kind="infogan", width=64), digits),
    64: (Decoder(kind="smooth", width=32), lambda: noise_images(64)),
}


def noise_images(size: int) -> NDArray[np.uint8]:
    """Return images of noise, uint8 [512, size, size, 3]; a step takes as long as with photographs."""
    return np.random.default_rng(0).integers(0, 256, (512, size, size, 3), np.uint8)


def speeds(name: str, size: int, on: Execution, pairs: int) -> tuple[float, float, float]:
    """Time both forms alternately, each with networks of its own.

    Parameters
    ----------
    name, size
        Keys of `FORMS` and `SETTINGS`.
    on
        Device and precision. Steps are only called; nothing is recorded.
    pairs
        How often both forms make `STEPS` steps.

    Returns
    -------
    tuple
        Images a second of the single step, of the usual form, and the ratio (medians).
    """
    kind, config, usual = FORMS[name]
    decoder, make = SETTINGS[size]
    images = make()
    architecture = DecoderArchitecture(config=decoder, latent_dim=64, size=size, channels=images.shape[3])
    shard = Shard(len(images), BATCH)
    single, other = (kind(name, images, architecture, config, Loss(), shard, 0, on) for _ in range(2))
    batches = [
        Batch(rows, weight, number, 0.0, 1.0)
        for number, (rows, weight) in zip(range(STEPS), shard.batches(0, "order"), strict=False)
    ]
    inputs = [*read_ahead(single.read, batches, on)]
    seen = sum(len(batch.rows) for batch in batches)

    def timed(take: Callable[[Inputs], object]) -> float:
        """Return the images a second of all steps."""
        if on.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for x in inputs:
            take(x)
        if on.device.type == "cuda":
            torch.cuda.synchronize()
        return seen / (time.perf_counter() - start)

    found = [(timed(single), timed(lambda x: usual(other, x))) for _ in range(WARM_UP + pairs)][WARM_UP:]
    ours, theirs = (statistics.median(speed) for speed in zip(*found, strict=True))
    return ours, theirs, statistics.median(a / b for a, b in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", choices=[*SETTINGS], default=[28], help="px")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15, help=f"of {STEPS} steps in each form")
    given = parser.parse_args()
    on = execution(Compute(device=given.device, precision=given.precision, threads=given.threads))
    table = Table("step", "images/s", "usual form, images/s", "ratio")
    for size in given.sizes:
        decoder, _ = SETTINGS[size]
        for name in FORMS:
            ours, theirs, ratio = speeds(name, size, on, given.pairs)
            what = f"{name}, {size} px, {decoder.kind} {decoder.width}"
            table.add_row(what, f"{ours:.0f}", f"{theirs:.0f}", f"{ratio:.2f}")
    where = (
        torch.cuda.get_device_name(on.device) if on.device.type == "cuda" else f"CPU, {given.threads} threads"
    )
    Console().print(f"{where}, {on.precision}, batches of {BATCH}")
    Console().print(table)


if __name__ == "__main__":
    main()
