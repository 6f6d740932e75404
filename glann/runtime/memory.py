"""Checking, before a run begins, that there is enough memory."""

import copy
from pathlib import Path

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


def activation_bytes(network: nn.Module, batch: tuple[int, ...], execution: Execution) -> int:
    """Return the bytes that a forward pass stores for the backward pass.

    Parameters
    ----------
    network
        The network; it is copied to the "meta" device, which computes shapes only.
    batch
        Shape of its input.
    execution
        Its precision is that of the activations.
    """
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    shadow = copy.deepcopy(network).to("meta")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        shadow(torch.empty(batch, device="meta", requires_grad=True))
    weights = {p.untyped_storage()._cdata for p in shadow.parameters()}
    return (
        sum(t.numel() for storage, t in kept.items() if storage not in weights) * execution.precision.itemsize
    )


def weight_bytes(network: nn.Module) -> int:
    """Return the bytes of a network in training: weights, gradients, two moments, moving average."""
    return PER_WEIGHT * sum(p.numel() for p in network.parameters())
