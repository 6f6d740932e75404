"""One function over many jobs, on all cores, with the results in the order of the jobs."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

# Unlike the standard library's, these worker processes do not import the script that was started: that may
# import torch, and without a `__main__` guard would begin the work anew in each of them.
from joblib.externals.loky import ProcessPoolExecutor  # type: ignore[import-untyped]

from glann.errors import GlannError
from glann.runtime.signals import end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Job], Result], jobs: Iterable[Job], processes: int
) -> Generator[Result, None, None]:
    """Yield ``function(job)`` for each job, in the order of the jobs, computed in worker processes.

    Jobs are taken a few ahead only, so jobs and results together may be larger than memory. Closing the
    generator ends the workers; so does the end of this process, however it comes.

    Parameters
    ----------
    function
        Importable by its name, or a `partial` of such a function.
    jobs
        The arguments.
    processes
        Worker processes; 1: none, everything is computed here.
    """
    if processes == 1:
        yield from map(function, jobs)
        return
    todo = iter(jobs)
    waiting: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(os.getpid(),))
    try:
        waiting.extend(pool.submit(function, job) for job in islice(todo, 2 * processes))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, job) for job in islice(todo, 1))
    except BrokenProcessPool:
        raise GlannError(
            "a worker process died, as happens where memory runs out; free some, or run on fewer cores, "
            "e.g. taskset -c 0 dvc repro; if it dies again, an image crashes its decoder: try half of them"
        ) from None
    finally:
        pool.shutdown(kill_workers=True)


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent that answers Ctrl-C
    end_with_parent(parent, grace=0)
