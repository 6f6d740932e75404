"""Checking, before a run begins, that there is enough memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn

from glann.errors import GlannError
from glann.runtime.compute import Execution

GIB = 2**30
PER_WEIGHT = 5 * 4  # bytes: weight, gradient, two moments, moving average
CGROUP = Path("/sys/fs/cgroup")


def check_memory(stage: str, needed: float, execution: Execution, knobs: str) -> None:
    """Refuse a run that needs more memory than there is.

    Parameters
    ----------
    stage
        Name for the message.
    needed
        Bytes needed on the device, a lower bound.
    execution
        The device.
    knobs
        The settings that lower the need, with their values.

    Raises
    ------
    GlannError
        If so; it names both numbers and the settings.
    """
    free = available(execution.device)
    if needed > free:
        raise GlannError(
            f"{stage}: needs about {needed / GIB:.1f} GiB of memory on {execution.device.type}, but only "
            f"{free / GIB:.1f} GiB are free; lower {knobs}"
        )


def available(device: torch.device) -> int:
    """Return the bytes of memory that this process can still allocate."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    try:  # a container's limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used -= int(counts["active_file"]) + int(counts["inactive_file"])  # cached files can be evicted
    except (OSError, ValueError, KeyError):
        return free
    return min(free, max(0, limit - used))


def memory_in_use() -> str:
    """Return in words how much memory this process uses: on a GPU what torch has used at most, else now."""
    if torch.cuda.is_initialized() and (on_gpu := torch.cuda.max_memory_allocated()):
        return f"{on_gpu / GIB:.1f} GiB of memory of the GPU, without Faiss"
    info = psutil.Process().memory_info()
    # Pages of mapped files, such as images.npy, can be evicted.
    return f"{(info.rss - getattr(info, 'shared', 0)) / GIB:.1f} GiB of memory"


class Activations(NamedTuple):
    """What a forward pass stores for the backward pass.

    Attributes
    ----------
    stored
        Bytes of all stored tensors.
    largest
        Bytes of the largest of them. In the backward pass, gradients of its size come and go.
    """

    stored: int
    largest: int


def activations(network: nn.Module, batch: tuple[int, ...], execution: Execution) -> Activations:
    """Return what a forward pass stores.

    Parameters
    ----------
    network
        The network; it is copied to the "meta" device, which computes shapes only.
    batch
        Shape of its input.
    execution
        Its precision is that of the activations.
    """
    shadow = copy.deepcopy(network).to("meta")
    weights = {p.untyped_storage()._cdata for p in shadow.parameters()}
    inputs = torch.empty(batch, device="meta", requires_grad=True)
    in_float32 = [size for storage, size in _stored(shadow, inputs).items() if storage not in weights]
    itemsize = execution.precision.itemsize
    return Activations(sum(in_float32) * itemsize // 4, max(in_float32) * itemsize // 4)


def activations_in_float32(function: Callable[[Tensor], Tensor], batch: tuple[int, ...]) -> Activations:
    """Return what a function of a float32 tensor stores, which must work on the "meta" device."""
    inputs = torch.empty(batch, device="meta", requires_grad=True)
    sizes = _stored(function, inputs).values()
    return Activations(sum(sizes), max(sizes))


def _stored(function: Callable[[Tensor], Tensor], inputs: Tensor) -> dict[int, int]:
    """Return the storages that a function's backward pass needs, and their bytes."""
    kept: dict[int, Tensor] = {}  # holds them, so that none gets the number of an earlier one

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(inputs)
    return {storage: tensor.untyped_storage().nbytes() for storage, tensor in kept.items()}


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of a network in training: weights, gradients, two moments, moving average."""
    return PER_WEIGHT * sum(p.numel() for p in network.parameters())
