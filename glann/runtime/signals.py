"""Signals: training runs stop where they can resume, everything else stops at once."""

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

ENDING = [signal.SIGTERM]
# Sent when a terminal closes. Under nohup the signal is ignored, and that is kept.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    ENDING.append(signal.SIGHUP)
AT_ONCE_AFTER = 1.0  # seconds; a terminal and a launcher may both deliver the same Ctrl-C

_received: list[tuple[int, float]] = []


class Stopped(GlannError):  # noqa: N818 (not an error)
    """A run that was asked to stop, and has."""

    def __init__(self, text: str):
        super().__init__(text)
        self.status = 128 + (_received[0][0] if _received else signal.SIGTERM)


@contextmanager
def end_in_order() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit within the context, so that unfinished files are removed."""
    with _handling(ENDING, lambda number, _: sys.exit(128 + number)):
        yield


@contextmanager
def unbroken() -> Iterator[None]:
    """Let a signal wait for the end of the context, for code that an exception in its midst would confuse."""
    received: list[int] = []
    try:
        with _handling([signal.SIGINT, *ENDING], lambda number, _: received.append(number)):
            yield
    finally:
        for number in received:
            signal.raise_signal(number)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Treat SIGINT, SIGTERM and SIGHUP as requests; a second one, a second later, ends the process at once.

    Raises
    ------
    Stopped
        On exit, if a request came that was not handled: what follows must not start.
    """
    with _handling([signal.SIGINT, *ENDING], _request):
        try:
            yield
            if _received:
                raise Stopped("stopped; run the same command to continue from here")
        finally:
            _received.clear()


@contextmanager
def _handling(
    numbers: list[signal.Signals], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def stop_requested() -> bool:
    """Return whether a signal asked this process to stop."""
    return bool(_received)


def unless_stopped(blocks: Iterable[Block], advance: Callable[[int], None] | None = None) -> Iterator[Block]:
    """Yield blocks of rows, and report progress, until a signal asks this process to stop.

    Raises
    ------
    Stopped
        Instead of the next block.
    """
    for block in blocks:
        if stop_requested():
            raise Stopped("stopped; run the same command to continue from here")
        yield block
        if advance:
            advance(len(block))


def end_with_parent(parent: int, grace: float) -> None:
    """End this process `grace` seconds after its parent has ended, even if it is blocked."""

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
