"""The one error meant for people, and how a program ends on it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glann.console import STDOUT, say


class GlannError(Exception):
    """A mistake the user can mend; its text is one line: where, what is wrong, what to do."""

    status = 1


class DamagedFileError(GlannError):
    """A file whose content is not what was written there.

    Parameters
    ----------
    path
        The file.
    what
        What shows it.
    """

    def __init__(self, path: str | Path, what: str):
        super().__init__(f"{path}: damaged: {what}")
        self.path = Path(path)


@contextmanager
def one_line_errors(stage: str | None = None) -> Iterator[None]:
    """Turn errors that people can do something about into one line on stderr and a non-zero exit status.

    They are `GlannError`, errors of the operating system, Ctrl-C, and memory that runs out, for which `stage`
    decides what is advised.
    """
    try:
        yield
        STDOUT.flush()
    except KeyboardInterrupt:
        _leave("interrupted", status=128 + signal.SIGINT)
    except Exception as error:
        text = in_one_line(error, stage)
        if text is None:
            raise
        _leave(text, error.status if isinstance(error, GlannError) else 1)


def in_one_line(error: Exception, stage: str | None = None) -> str | None:
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
    say(text)
    sys.exit(status)
