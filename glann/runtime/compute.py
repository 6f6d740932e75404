"""How a run is executed: device, precision, threads (the `compute` section of params.yaml)."""

import ctypes
import functools
import os
import shutil
import sys
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glann.errors import GlannError
from glann.runtime.settings import Compute

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
FAST_ON_CPU = {"avx512_bf16", "amx_bf16"}  # as /proc/cpuinfo spells them


@dataclass(frozen=True)
class Execution:
    """A device, the precision in which convolutions and matrix products run there, and how steps are started.

    Attributes
    ----------
    device, precision
        The device and the precision.
    records
        Whether training steps on a GPU are recorded and replayed.
    """

    device: torch.device
    precision: torch.dtype
    records: bool = False

    @property
    def numerics(self) -> str:
        """Everything that affects the rounding of results."""
        return f"{self.device.type} {self.precision} {torch.get_num_threads()} threads"

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which networks run: parameters are float32, products use `precision`."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy to the device without waiting; to a GPU through pinned memory."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def execution(compute: Compute) -> Execution:
    """Set the thread count and choose device and precision.

    Raises
    ------
    GlannError
        If the requested GPU does not exist; the message says which ones do.
    """
    torch.set_num_threads(compute.threads)
    _keep_freed_memory()
    seen, why_none = _gpus()
    local = int(os.environ.get("LOCAL_RANK", "0"))  # number of this process on this machine
    name = compute.device
    if name == "auto":
        name = "cuda" if seen else "cpu"
        if why_none and local == 0:
            print(f"glann: this runs on the CPU: {why_none}", file=sys.stderr)
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of the run on this machine
    if name.startswith("cuda:") and beside > 1:
        raise GlannError(
            f"compute.device: {name} is one GPU, but torchrun started {beside} processes here; set it to cuda"
        )
    if name == "cuda":  # each process on a machine has its own GPU
        name = f"cuda:{local}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise GlannError(_no_such_gpu(compute.device, local, seen, why_none))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Faiss works on the stream of the current device
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, not TF32
    return Execution(device, _precision(compute.precision, device), compute.cuda_graphs)


@functools.cache
def _gpus() -> tuple[int, str]:
    """Return how many GPUs torch sees. If there is a driver but torch sees no GPU, also return why."""
    with warnings.catch_warnings(record=True) as caught:  # torch's own warning is half a screen long
        warnings.simplefilter("always")
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    has_driver = NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi") is not None
    if seen or not has_driver or torch.version.cuda is None or hidden in ("", "-1"):
        return seen, ""
    said = " ".join(str(caught[0].message).split()).split(". ")[0] if caught else ""
    return 0, (
        f"this machine has an NVIDIA driver, but torch sees no GPU ({said or _unseen(hidden)}); torch was "
        f"built for CUDA {torch.version.cuda}, which a driver may be too old for: see nvidia-smi"
    )


def _unseen(hidden: str | None) -> str:
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES={hidden} may hide it"
    return "in a container, it has to be started with access to the GPU"


def _no_such_gpu(asked: str, local: int, seen: int, why_none: str) -> str:
    """Say which requested GPU does not exist, and which settings fit the existing ones."""
    if not seen:
        return f"compute.device: {asked}, but {why_none or 'torch sees no GPU'}; set it to auto or cpu"
    there = "cuda:0" if seen == 1 else f"cuda:0 to cuda:{seen - 1}"
    if asked in ("auto", "cuda"):
        return (
            f"compute.processes: process {local} has no GPU of its own, torch sees {there}; set it, or "
            f"torchrun's --nproc-per-node, to {seen}"
        )
    return f"compute.device: {asked}, but torch sees {there}; set it to one of these, or to auto"


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the system.

    Every training step frees and allocates the same large blocks; this makes it about 10 % faster.
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


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
