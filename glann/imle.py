"""IMLE in latent space: noise is mapped onto latents by nearest-neighbour matching (arXiv:1809.09087)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from glann.compute import Execution
from glann.config import Imle
from glann.decoders import initialize
from glann.errors import GlannError
from glann.mapping import MappingArchitecture, MappingNetwork
from glann.neighbors import nearest
from glann.progress import progress
from glann.storage import load_npy
from glann.streams import noise_rows, stream
from glann.training import (
    Checkpoints,
    adam,
    batches,
    check_finite,
    check_state,
    flatten_state,
    learning_rate_factor,
    moving_average,
    restore_state,
    step,
)

MAP_ROWS = 16_384  # noise draws mapped at once when candidates are made


@dataclass
class ImleResult:
    """A fitted mapping.

    Attributes
    ----------
    mapping
        The moving average of the mapping, in evaluation mode.
    history
        Per epoch: its number from 1 on, the regression loss, and the mean squared distance from a latent to
        its nearest candidate, both in units of the latents' squared norm or spread.
    """

    mapping: MappingNetwork
    history: list[dict[str, float]]


def fit_imle(
    latents: Tensor,
    config: Imle,
    seed: int,
    execution: Execution,
    checkpoints: Checkpoints | None = None,
) -> ImleResult:
    """Fit the mapping: draw noise, map it, find each latent's nearest candidate, regress (GLANN, section 3).

    Parameters
    ----------
    latents
        float [n, d], of any norm.
    config
        The `imle` section of params.yaml.
    seed
        Of every random draw.
    execution
        Device and precision. The mapping itself runs in float32: it is too small to gain from less.
    checkpoints
        Where to resume from and to save to; None: neither.

    Raises
    ------
    GlannError
        If there are fewer than 2 latents, one is not finite, Faiss refuses the index, or the loss stops
        being finite.
    """
    latents = latents.to(execution.device, torch.float32)
    n, d = latents.shape
    if n < 2 or not latents.isfinite().all():
        raise GlannError("latents: imle needs 2 or more rows of finite numbers")
    architecture = MappingArchitecture(config=config.mapping, noise_dim=config.noise_dim, latent_dim=d)
    mapping = MappingNetwork(architecture)
    initialize(mapping, stream(seed, "imle", "mapping"))
    mapping.to(execution.device).fit_range(latents)
    average = moving_average(mapping, config.ema)
    optimizer = adam(mapping.network, config.lr, config.parameter_groups)
    wanted = mapping.to_unit(latents)
    count = max(2, round(config.candidates * n))
    history: list[dict[str, float]] = []

    saved = checkpoints.load() if checkpoints else None
    if saved:
        tensors, history = saved
        restore_state(tensors, mapping=mapping, average=average, optimizer=optimizer)

    steps = len(batches(torch.arange(n), config.batch_size))
    with progress("imle", config.epochs, "epochs", done=len(history)) as advance:
        for epoch in range(len(history), config.epochs):
            noise = noise_rows(0, count, config.noise_dim, seed, "imle", epoch, "noise").to(execution.device)
            candidates = map_in_blocks(mapping, noise)
            distances, matches = nearest(wanted, candidates, index=config.index)
            matched_noise = noise[matches[:, 0]]

            mapping.train()
            order = torch.randperm(n, generator=stream(seed, "imle", epoch, "order"))
            total = 0.0
            for i, rows in enumerate(batches(order.to(execution.device), config.batch_size)):
                factor = learning_rate_factor(config.schedule, epoch * steps + i, config.epochs * steps)
                loss = (mapping.unit(matched_noise[rows]) - wanted[rows]).square().sum(dim=1).mean()
                loss.backward()
                value = loss.item()
                check_finite(value, f"imle: epoch {epoch + 1}, step {i + 1}", checkpoints)
                step(optimizer, config.lr * factor)
                average.update_parameters(mapping)
                total += value * len(rows)
            found = distances.mean().item()
            history.append(
                {"epoch": epoch + 1, "loss": float(f"{total / n:.6g}"), "nearest": float(f"{found:.6g}")}
            )
            advance(1, f"loss {total / n:.4f}")
            state = flatten_state(mapping=mapping, average=average, optimizer=optimizer)
            check_state(state, f"imle: epoch {epoch + 1}", checkpoints)
            if checkpoints and checkpoints.due():
                checkpoints.save(state, history)

    trained = average.module
    assert isinstance(trained, MappingNetwork)
    noise = noise_rows(0, count, config.noise_dim, seed, "imle", "batch_norm").to(execution.device)
    update_bn(batches(noise, config.batch_size), trained)
    return ImleResult(trained.eval(), history)


@torch.no_grad()
def map_in_blocks(mapping: MappingNetwork, noise: Tensor) -> Tensor:
    """Map noise [m, e] to candidates [m, d] before shift and scale, by the statistics of evaluation mode."""
    mapping.eval()
    return torch.cat([mapping.unit(block) for block in noise.split(MAP_ROWS)])


def load_latents(path: str | Path) -> Tensor:
    """Read latents from an .npy file of floats [n, d] as float32.

    Raises
    ------
    GlannError
        If the file is missing, is no array of floats, or is not two-dimensional.
    """
    array = load_npy(path)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise GlannError(f"{path}: expected floats [n, d], found {array.dtype} {list(array.shape)}")
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
