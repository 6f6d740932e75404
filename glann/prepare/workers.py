"""Applying one function to many jobs in worker processes."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

# Unlike those of the standard library, these worker processes do not import the main script: it may import
# torch, and without a `__main__` guard it would start the work again in each of them.
from joblib.externals.loky import ProcessPoolExecutor  # type: ignore[import-untyped]

from glann.errors import GlannError
from glann.runtime.signals import end_with_parent, unbroken

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Job], Result], jobs: Iterable[Job], processes: int
) -> Generator[Result, None, None]:
    """Yield ``function(job)`` for each job, in the order of the jobs, computed in worker processes.

    Only a few jobs are in progress at a time, so all jobs and results together may be larger than memory.
    Closing the generator ends the workers when the jobs in progress are done. If this process ends or is
    killed, they end too.

    Parameters
    ----------
    function
        A function that can be imported by its name, or a `partial` of one.
    jobs
        The arguments of the function.
    processes
        Number of worker processes. With 1, everything is computed in this process.
    """
    if processes == 1:
        yield from map(function, jobs)
        return
    todo = iter(jobs)
    waiting: deque[Future[Result]] = deque()
    broken = False
    pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(os.getpid(),))

    def submit(count: int) -> None:
        with unbroken():  # a pool whose thread is half started cannot be shut down
            waiting.extend(pool.submit(function, job) for job in islice(todo, count))

    try:
        submit(2 * processes)
        while waiting:
            yield waiting.popleft().result()
            submit(1)
    except BrokenProcessPool:
        broken = True
        raise GlannError(
            "a worker process died, probably because memory ran out; free some, or run on fewer cores, "
            "e.g. taskset -c 0 dvc repro; if it dies again, an image crashes the decoder: try half of them"
        ) from None
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(kill_workers=broken)  # killing workers that have work makes loky print a traceback


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    end_with_parent(parent, grace=0)
