"""Several processes: torch's launcher, and what its ranks sum, share and gather."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ErrorHandler, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from glann.errors import GlannError
from glann.runtime.console import STDERR
from glann.runtime.settings import Compute
from glann.runtime.signals import Stopped, end_with_parent

SECONDS_TO_STOP = 20  # for a checkpoint, where the starting process is gone
OURS = "GLANN_LAUNCHED"  # has the pid of the starting process, in those that `launch` itself started


def launch(work: Callable[[], None], compute: Compute) -> None:
    """Call `work` in this process, or run this script again in several new ones that form a group.

    Under torchrun the processes are there already, and each calls `work` as a member of their group.

    Parameters
    ----------
    work
        What to do; may ask `rank` and `ranks` who it is.
    compute
        Its `processes` says how many to start on this machine, ignored under torchrun, and its `device` what
        they exchange.

    Raises
    ------
    GlannError
        If a process fails: the first failure's own message, after all others have been stopped.
    """
    if dist.is_torchelastic_launched():
        _work_in_group(work, compute.device)
    elif compute.processes == 1:
        work()
    else:
        _start(compute.processes)


def rank() -> int:
    """Return this process's number in the group, 0 where there is none."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """Return the number of processes in the group, 1 where there is none."""
    return dist.get_world_size() if dist.is_initialized() else 1


def _start(processes: int) -> None:
    script = sys.modules["__main__"].__spec__
    assert script is not None, "processes are started for scripts run with python -m"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are said below
    os.environ[OURS] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # compute.threads sets the number that counts
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
            elastic_launch(config, sys.executable)("-m", script.name)
        except ChildFailedError as error:
            raise GlannError(_reason(error.failures)) from None
        except SignalException:  # passed on to all processes, which have ended by now
            raise Stopped("stopped; the same command goes on from the last checkpoint") from None


def _reason(failures: dict[int, ProcessFailure]) -> str:
    """Say what stopped the run: what a process complained of, else who was killed, else who failed first.

    When a process fails, those that wait for it fail too, with errors that say nothing of the cause.
    """
    recorded = {
        rank: failure.error_file_data["message"]
        for rank, failure in failures.items()
        if isinstance(failure.error_file_data["message"], dict)
    }
    for said in recorded.values():
        kind, _, text = said["message"].partition(": ")
        if kind in ("GlannError", "Stopped"):
            return str(text)
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # by which the others are stopped
            name = signal.Signals(-failure.exitcode).name
            return f"process {rank} was ended by {name} and the others with it; run again to go on"
    if not recorded:
        return f"process {min(failures)} failed; all others were stopped"
    first = min(recorded, key=lambda rank: Path(failures[rank].error_file).stat().st_mtime_ns)
    STDERR.write(f"{recorded[first]['extraInfo']['py_callstack']}\n")
    return f"process {first} failed: {recorded[first]['message']}; all others were stopped"


def _work_in_group(work: Callable[[], None], device: str) -> None:
    if OURS in os.environ:  # without the starting process, joining the group would wait for minutes
        end_with_parent(int(os.environ[OURS]), SECONDS_TO_STOP)
    dist.init_process_group(_backend(device))
    try:
        work()
        dist.barrier()  # rank 0 may still be writing what the next stage reads
    except Exception as error:
        if OURS not in os.environ:
            raise
        ErrorHandler().record_exception(error)  # the starting process says it, once
        os._exit(1)  # leaving the group in order would wait for the others
    dist.destroy_process_group()


def _backend(device: str) -> str:
    """Return what carries tensors between processes: gloo those on CPUs, nccl those on GPUs.

    Where none is named, torch takes the GPUs' alone if it sees one, and the first sum on the CPU fails.
    """
    return "gloo" if device == "cpu" or not torch.cuda.is_available() else "cpu:gloo,cuda:nccl"


def data_parallel(module: nn.Module) -> nn.Module:
    """Return the module with gradients averaged over ranks in backward; itself where there is one rank."""
    if ranks() == 1:
        return module
    on_gpu = next(module.parameters()).is_cuda
    devices = [torch.cuda.current_device()] if on_gpu else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)


def total(value: Tensor) -> Tensor:
    """Return the sum over ranks of a tensor, the same on every rank."""
    if ranks() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def decided_by_first(answer: bool) -> bool:
    """Return rank 0's answer on every rank."""
    if ranks() == 1:
        return answer
    answers = [answer]
    dist.broadcast_object_list(answers, src=0)
    return answers[0]


def all_rows(part: Tensor) -> Tensor:
    """Join rows [n_r, ...] of all ranks, in the order of ranks, on every rank."""
    if ranks() == 1:
        return part
    padded, counts = _padded(part)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])


def rows_at_first(part: Tensor) -> Tensor:
    """Join rows [n_r, ...] of all ranks, in the order of ranks, on rank 0; others get their own back."""
    if ranks() == 1:
        return part
    padded, counts = _padded(part)
    parts = [torch.empty_like(padded) for _ in counts] if rank() == 0 else None
    dist.gather(padded, parts)
    if parts is None:
        return part
    return torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])


def _padded(part: Tensor) -> tuple[Tensor, list[int]]:
    """Fill up a rank's rows to the largest number that any has; also return the numbers."""
    count = torch.zeros(ranks(), dtype=torch.int64, device=part.device)
    count[rank()] = len(part)
    counts = total(count).tolist()
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    return padded, counts
