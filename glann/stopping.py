"""SIGINT and SIGTERM ask a training run to stop at a place from which it can go on."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from glann.errors import GlannError

Block = TypeVar("Block", bound=Sized)

PR_SET_PDEATHSIG = 1  # as prctl.h numbers it
AT_ONCE_AFTER = 1.0  # seconds; a terminal and a launcher may both pass on one and the same Ctrl-C

_received: list[tuple[int, float]] = []


class Stopped(GlannError):  # noqa: N818 (it is no error)
    """A run that was asked to stop, and has."""

    def __init__(self, text: str):
        super().__init__(text)
        self.status = 128 + (_received[0][0] if _received else signal.SIGTERM)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within, SIGINT and SIGTERM are requests; a second one after a second ends the process at once.

    Under DVC the end of DVC is such a request too: a stage must not go on writing when another run may begin.

    Raises
    ------
    Stopped
        At the end, if a request came that nobody has answered: what follows must not start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _request) for number in (signal.SIGINT, signal.SIGTERM)}
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        yield
        if _received:
            raise Stopped("stopped; the same command goes on from here")
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_requested() -> bool:
    """Return whether a signal asked this process to stop."""
    return bool(_received)


def unless_stopped(blocks: Iterable[Block], advance: Callable[[int], None] | None = None) -> Iterator[Block]:
    """Yield blocks of rows, and say how many are done, until a signal asks this process to stop.

    Raises
    ------
    Stopped
        Instead of the next block.
    """
    for block in blocks:
        if stop_requested():
            raise Stopped("stopped; the same command goes on from here")
        yield block
        if advance:
            advance(len(block))


def end_with_parent(parent: int, grace: float) -> None:
    """End this process so many seconds after its parent has ended, whatever it waits for then."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(grace)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _request(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if _received and now - _received[0][1] > AT_ONCE_AFTER:
        raise KeyboardInterrupt
    if not _received:
        _received.append((number, now))
