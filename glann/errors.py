"""The one error meant for people, and how a program ends on it."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM


class GlannError(Exception):
    """A mistake the user can mend; its text is one line: where, what is wrong, what to do."""

    status = 1


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that people can do something about into one line on stderr and a non-zero exit status.

    They are `GlannError`, errors of the operating system, and the want of memory. SIGTERM ends the process in
    order, so that nothing half-written stays.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    except KeyboardInterrupt:
        _leave("interrupted", status=128 + signal.SIGINT)
    except Exception as error:
        text = in_one_line(error)
        if text is None:
            raise
        _leave(text, error.status if isinstance(error, GlannError) else 1)


def in_one_line(error: Exception) -> str | None:
    """Return what to tell the user of an error, None for one that only a programmer can mend."""
    if isinstance(error, GlannError):
        return str(error)
    if _out_of_memory(error):
        return (
            "memory ran out; lower glo.batch_size or imle.batch_size, or set compute.precision to bfloat16 "
            f"({str(error)[:150]})"
        )
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return None


def _out_of_memory(error: Exception) -> bool:
    # torch is imported late, and so are its classes.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _leave(text: str, status: int) -> None:
    print("glann: " + " ".join(text.split()), file=sys.stderr)
    sys.exit(status)
