"""Several processes: starting them, and exchanging tensors between them."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ErrorHandler, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from glann.errors import DivergedError, GlannError
from glann.runtime.console import STDERR
from glann.runtime.settings import Compute
from glann.runtime.signals import Stopped, end_with_parent

Value = TypeVar("Value")
SECONDS_TO_STOP = 20  # for a last checkpoint, if the starting process has died
OURS = "GLANN_LAUNCHED"  # pid of the starting process, in processes started by `launch`


def launch(work: Callable[[], None], compute: Compute) -> None:
    """Call `work` in this process, or run this script in several new processes that form a group.

    Under torchrun the processes exist already, and each of them calls `work` as a member of the group.

    Parameters
    ----------
    work
        What to do; it may use `rank` and `ranks`.
    compute
        The `compute` section of params.yaml: how many processes to start on this machine (ignored under
        torchrun), and their device.

    Raises
    ------
    GlannError
        If a process fails: the message of the first failure. All other processes have been stopped then.
    """
    if dist.is_torchelastic_launched():
        _work_in_group(work, compute.device)
    elif compute.processes == 1:
        work()
    else:
        _start(compute.processes)


def rank() -> int:
    """Return the number of this process in the group; 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Return the number of processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _start(processes: int) -> None:
    script = sys.modules["__main__"].__spec__
    assert script is not None, "only scripts run with python -m can start processes"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are reported below
    os.environ[OURS] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # compute.threads sets the actual number
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="glann",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", script.name, *sys.argv[1:])
        except ChildFailedError as error:
            raise GlannError(_reason(error.failures)) from None
        except SignalException:  # it was passed on to all processes, which have ended
            raise Stopped("stopped; run the same command to continue from the last checkpoint") from None


def _reason(failures: dict[int, ProcessFailure]) -> str:
    """Say why the run stopped: a process's own message, or which was killed, or which failed first.

    When a process fails, those waiting for it fail too, with errors that do not name the cause. If a training
    diverged, that is raised again.
    """
    recorded = {
        rank: failure.error_file_data["message"]
        for rank, failure in failures.items()
        if isinstance(failure.error_file_data["message"], dict)
    }
    for said in recorded.values():
        kind, _, text = said["message"].partition(": ")
        if kind == "DivergedError":
            raise DivergedError(*text.split("; ", 1))
        if kind in ("GlannError", "Stopped"):
            return str(text)
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # with which the others are stopped
            name = signal.Signals(-failure.exitcode).name
            return f"process {rank} was killed by {name}, the others were stopped; run the same command again"
    if not recorded:
        return f"process {min(failures)} failed; all others were stopped"
    first = min(recorded, key=lambda rank: Path(failures[rank].error_file).stat().st_mtime_ns)
    STDERR.write(f"{recorded[first]['extraInfo']['py_callstack']}\n")
    return f"process {first} failed: {recorded[first]['message']}; all others were stopped"


def _work_in_group(work: Callable[[], None], device: str) -> None:
    if OURS in os.environ:  # if the starting process dies, joining the group would block for minutes
        end_with_parent(int(os.environ[OURS]), SECONDS_TO_STOP)
    dist.init_process_group(_backend(device))
    try:
        work()
        dist.barrier()  # rank 0 may still be writing the results
    except Exception as error:
        if OURS not in os.environ:
            raise
        ErrorHandler().record_exception(error)  # the starting process reports it, once
        os._exit(1)  # leaving the group properly would wait for the others
    dist.destroy_process_group()


def _backend(device: str) -> str:
    """Return the backend for tensors: gloo for those on the CPU, nccl for those on GPUs.

    By default, torch chooses only nccl if it sees a GPU, and the first sum of CPU tensors fails.
    """
    return "gloo" if device == "cpu" or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"


def data_parallel(module: nn.Module) -> nn.Module:
    """Return the module with gradients averaged over ranks; with one rank, the module itself."""
    if ranks() == 1:
        return module
    on_gpu = next(module.parameters()).is_cuda
    devices = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, on every rank."""
    if ranks() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def from_first(value: Value) -> Value:
    """Return rank 0's value on every rank: anything that can be pickled, a tensor on the CPU."""
    if ranks() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_rows(part: Tensor) -> Tensor:
    """Join rows [n_r, ...] of all ranks, in the order of ranks, on every rank."""
    if ranks() == 1:
        return part
    padded, counts = _padded(part)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])


def rows_at_first(part: Tensor) -> Tensor:
    """Join rows [n_r, ...] of all ranks, in the order of ranks, on rank 0; others get their own back.

    They are joined on the CPU: a GPU may have no room for all of them.
    """
    if ranks() == 1:
        return part
    padded, counts = _padded(part.cpu())
    parts = [torch.empty_like(padded) for _ in counts] if rank() == 0 else None
    dist.gather(padded, parts)
    if parts is None:
        return part
    return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])


def _padded(part: Tensor) -> tuple[Tensor, list[int]]:
    """Pad a rank's rows to the largest number of rows on any rank; also return all numbers."""
    count = torch.zeros(ranks(), dtype=torch.int64, device=part.device)
    count[rank()] = len(part)
    counts = total(count).tolist()
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    return padded, counts
