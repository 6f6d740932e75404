"""How much memory a run needs, told before it begins."""

import copy
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from glann.errors import GlannError
from glann.runtime.compute import Execution

GIB = 2**30
PER_WEIGHT = 5 * 4  # bytes: weight, gradient, two moments, average
CGROUP = Path("/sys/fs/cgroup")


def check_memory(stage: str, needed: float, execution: Execution, knobs: str) -> None:
    """Refuse a run that cannot fit.

    Parameters
    ----------
    stage
        For the message.
    needed
        Bytes on the device, estimated from below.
    execution
        The device.
    knobs
        The settings that lower it, with their values.

    Raises
    ------
    GlannError
        Naming both numbers and the knobs.
    """
    free = available(execution.device)
    if needed > free:
        raise GlannError(
            f"{stage}: needs about {needed / GIB:.1f} GiB of memory on {execution.device.type} and "
            f"{free / GIB:.1f} GiB are free; lower {knobs}"
        )


def available(device: torch.device) -> int:
    """Return the bytes that this process may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    try:  # a container's limit
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used -= int(counts["active_file"]) + int(counts["inactive_file"])  # files that were read: given up
    except (OSError, ValueError, KeyError):
        return free
    return min(free, max(0, limit - used))


def activation_bytes(network: nn.Module, batch: tuple[int, ...], execution: Execution) -> int:
    """Count what a forward pass keeps for backward.

    Parameters
    ----------
    network
        The network; it is copied to torch's "meta" device, which computes shapes alone.
    batch
        Shape of its input.
    execution
        Whose precision activations have.
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
    """Count what the weights of a network in training take: themselves, gradient, two moments, average."""
    return PER_WEIGHT * sum(p.numel() for p in network.parameters())
