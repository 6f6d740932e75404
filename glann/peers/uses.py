"""What rivals can do besides drawing samples: reconstruct images, tell foreign ones, refine samples.

Judges run in float32 here: rounding to bfloat16 would make different scores equal, and would decide which
steps of the sampler are accepted.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from glann.images.tensors import to_float, upload
from glann.peers.judges import JudgeNetwork
from glann.peers.settings import Refine
from glann.runtime.compute import Execution
from glann.runtime.progress import progress
from glann.runtime.randomness import noise_rows
from glann.sample.blocks import decoded_at_once, whole_blocks
from glann.sample.generator import Generator

CODES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "vae": lambda seen: seen.chunk(2, dim=1)[0],  # the mean; the other half is the logarithmic variance
    "ogan": lambda seen: seen - seen.mean(dim=1, keepdim=True),  # the mean is the score
}
"""By the rival that can reconstruct: what its judge gives, float32 [b, k], to noise float32 [b, d]."""
SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gan": lambda seen: -seen[:, 0],
    "wgan_gp": lambda seen: -seen[:, 0],
    "ogan": lambda seen: seen.mean(dim=1),
    "energy": lambda seen: seen[:, 0],
}
"""By rival: what its judge gives to a number float32 [b], higher for images that look foreign."""


def reconstruct(
    name: str, images: NDArray[np.uint8], judge: JudgeNetwork, generator: Generator
) -> NDArray[np.uint8]:
    """Encode images and decode them again.

    Parameters
    ----------
    name
        Which rival, a key of `CODES`.
    images
        uint8 [n, h, w, c].
    judge, generator
        Its networks, on one device.

    Returns
    -------
    NDArray
        uint8 [n, h, w, c].
    """
    made = []
    with progress(f"{name}: reconstructions", len(images), "images") as advance:
        for block in _blocks(images):
            made.append(_decoded_again(name, block, judge, generator))
            advance(len(block))
    return np.concatenate(made)


def strangeness(
    name: str, images: NDArray[np.uint8], judge: JudgeNetwork, generator: Generator
) -> NDArray[np.float32]:
    """Say of images how foreign they look to a rival.

    Parameters
    ----------
    name
        Which one: vae, or a key of `SCORES`. A vae is judged by how badly it reconstructs the image, see
        `pixel_error`.
    images
        uint8 [n, h, w, c].
    judge, generator
        Its networks, on one device.

    Returns
    -------
    NDArray
        float32 [n], higher for foreign images, in units of its own for each rival.
    """
    found = []
    with progress(f"{name}: scores", len(images), "images") as advance:
        for block in _blocks(images):
            if name == "vae":
                found.append(pixel_error(block, _decoded_again(name, block, judge, generator)))
            else:
                found.append(SCORES[name](_judged(block, judge, generator.execution)).cpu().numpy())
            advance(len(block))
    return np.concatenate(found)


def pixel_error(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the root mean square difference of pairs of uint8 [n, ...], in grey levels, float32 [n]."""
    difference = images.astype(np.float32) - others
    return np.sqrt(np.square(difference).reshape(len(images), -1).mean(axis=1))


def refine(
    noise: Tensor, judge: JudgeNetwork, generator: Generator, config: Refine, seed: int
) -> tuple[Tensor, float]:
    """Refine samples in noise space by a Metropolis-adjusted Langevin sampler (arXiv:1901.08508).

    The density of noise z is exp(-E(z)) with E(z) = w U(G(z)) + |z|² / 2, where U is the energy of an image
    and w its weight: that of the decoder's samples, times exp(-w U). A step of rate a proposes
    z' = z - a ∇E(z) + √(2a) ε, and accepts it with probability
    min(1, exp(E(z) - E(z')) q(z | z') / q(z' | z)), where q is the density of such a proposal.

    Parameters
    ----------
    noise
        float32 [n, d], standard normal.
    judge, generator
        The rival's networks, on one device.
    config
        Number of steps, their rate, and the weight.
    seed
        Seed of proposals and decisions. A row's depend on its number, but not on other rows.

    Returns
    -------
    tuple
        Refined noise, float32 [n, d] on the CPU, and the share of the proposals that were accepted.
    """
    at_once, rate, execution = decoded_at_once(generator.shape[0]), config.rate, generator.execution
    refined, accepted = [], 0
    with progress("energy: refinement", config.steps * -(-len(noise) // at_once), "steps") as advance:
        for start in range(0, len(noise), at_once):
            rows = len(noise[start : start + at_once])
            (at,) = whole_blocks(noise[start : start + at_once].to(execution.device), at_once)
            energy, slope = _energy(at, judge, generator, config.weight)
            for step in range(config.steps):
                draws = [
                    noise_rows(start, start + at_once, dim, seed, "energy", "refine", step, what)
                    for what, dim in (("proposal", noise.shape[1]), ("decision", 1))
                ]
                push, decision = (draw.to(execution.device) for draw in draws)
                proposal = at - rate * slope + (2 * rate) ** 0.5 * push
                energy_there, slope_there = _energy(proposal, judge, generator, config.weight)
                back = (at - proposal + rate * slope_there).square().sum(dim=1) / (4 * rate)
                forth = push.square().sum(dim=1) / 2
                chance = energy - energy_there - back + forth  # its logarithm
                taken = torch.special.log_ndtr(decision[:, 0]) < chance  # uniform in [0, 1] < exp(chance)
                at = torch.where(taken[:, None], proposal, at)
                slope = torch.where(taken[:, None], slope_there, slope)
                energy = torch.where(taken, energy_there, energy)
                accepted += int(taken[:rows].sum())
                advance()
            refined.append(at[:rows].cpu())
    return torch.cat(refined), accepted / (len(noise) * config.steps)


def _energy(noise: Tensor, judge: JudgeNetwork, generator: Generator, weight: float) -> tuple[Tensor, Tensor]:
    """Return E of noise [b, d], float32 [b], and its gradient, float32 [b, d]."""
    noise = noise.detach().requires_grad_()
    images = generator.decoder(F.normalize(noise, dim=1))
    energy = weight * judge(images)[:, 0] + noise.square().sum(dim=1) / 2
    (slope,) = torch.autograd.grad(energy.sum(), noise)
    return energy.detach(), slope


def _decoded_again(
    name: str, block: NDArray[np.uint8], judge: JudgeNetwork, generator: Generator
) -> NDArray[np.uint8]:
    return generator.decode(CODES[name](_judged(block, judge, generator.execution)), title=None)


@torch.no_grad()
def _judged(block: NDArray[np.uint8], judge: JudgeNetwork, execution: Execution) -> Tensor:
    """Return what a judge gives for a block of images uint8 [b, h, w, c]: float32 [b, k] on the device."""
    (whole,) = whole_blocks(to_float(upload(block, execution)), decoded_at_once(block.shape[1]))
    return judge(whole)[: len(block)]


def _blocks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    at_once = decoded_at_once(images.shape[1])
    for start in range(0, len(images), at_once):
        yield np.asarray(images[start : start + at_once])
