"""How a run is executed: device, precision, threads (the `compute` section of params.yaml)."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glann.config import Compute
from glann.errors import GlannError

FAST_ON_CPU = {"avx512_bf16", "amx_bf16"}  # as /proc/cpuinfo spells them


@dataclass(frozen=True)
class Execution:
    """A device and the precision in which convolutions and matrix products run there."""

    device: torch.device
    precision: torch.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which networks run: parameters stay float32, products use `precision`."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy to the device without waiting, through pinned memory where the device is a GPU."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def execution(compute: Compute) -> Execution:
    """Set the thread count and choose device and precision.

    Raises
    ------
    GlannError
        If a GPU is asked for and there is none, or none of that number.
    """
    torch.set_num_threads(compute.threads)
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GlannError(
            f"compute.device: {name}, but torch sees {torch.cuda.device_count()} GPUs; set it to auto or cpu"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Faiss orders its work after that of the current device's stream
        torch.backends.cudnn.allow_tf32 = False  # where bfloat16 is not asked for, float32 is meant
    return Execution(device, _precision(compute.precision, device))


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        flags = Path("/proc/cpuinfo")
        has_bfloat16 = flags.exists() and bool(FAST_ON_CPU & set(flags.read_text().split()))
    return torch.bfloat16 if has_bfloat16 else torch.float32
