"""How a run is executed: device, precision, threads (the `compute` section of params.yaml)."""

import ctypes
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glann.config import Compute
from glann.errors import GlannError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
FAST_ON_CPU = {"avx512_bf16", "amx_bf16"}  # as /proc/cpuinfo spells them


@dataclass(frozen=True)
class Execution:
    """A device and the precision in which convolutions and matrix products run there."""

    device: torch.device
    precision: torch.dtype

    @property
    def numerics(self) -> str:
        """What decides the last bits of a result."""
        return f"{self.device.type} {self.precision} {torch.get_num_threads()} threads"

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
    _keep_freed_memory()
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":  # of several processes on a machine each has its own
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GlannError(
            f"compute.device: {compute.device}, but torch sees {torch.cuda.device_count()} GPUs; "
            "set it to auto or cpu, or compute.processes to the number of GPUs"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Faiss orders its work after that of the current device's stream
        torch.backends.cudnn.allow_tf32 = False  # where bfloat16 is not asked for, float32 is meant
    return Execution(device, _precision(compute.precision, device))


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks, which it otherwise returns to the system and gets anew, page by page.

    A training step frees and allocates the same blocks of megabytes each time; it becomes a tenth faster.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30) or libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # older glibc's limit


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        flags = Path("/proc/cpuinfo")
        has_bfloat16 = flags.exists() and bool(FAST_ON_CPU & set(flags.read_text().split()))
    return torch.bfloat16 if has_bfloat16 else torch.float32
