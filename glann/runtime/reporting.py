"""How a program ends on an error: one line on stderr and an exit status."""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from glann.errors import GlannError
from glann.runtime.console import say

LONGEST = 1000  # characters of a message
LESS_MEMORY = "draw fewer images, or fit fewer latents"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that people can do something about into one line on stderr and a non-zero exit status.

    They are `GlannError`, errors of the operating system, Ctrl-C, and memory that runs out.
    """
    try:
        yield
    except KeyboardInterrupt:
        _leave("interrupted", status=128 + signal.SIGINT)
    except Exception as error:
        text = in_one_line(error)
        if text is None:
            raise
        _leave(text, error.status if isinstance(error, GlannError) else 1)


def in_one_line(error: Exception, less_memory: str = LESS_MEMORY) -> str | None:
    """Return what to tell the user of an error, None for one that only a programmer can do something about.

    Parameters
    ----------
    error
        What was raised.
    less_memory
        What to advise if memory ran out.
    """
    if isinstance(error, GlannError):
        return _printable(str(error))
    if memory_ran_out(error):
        why = str(error)[:150]
        return _printable(f"memory ran out; {less_memory}{f' ({why})' if why else ''}")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _printable(f"{where}{error.strerror or error}")
    return None


def _printable(text: str) -> str:
    """Put text on one line of bounded length, and write out characters that would change the terminal."""
    text = " ".join(text.split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def memory_ran_out(error: Exception) -> bool:
    """Say whether an error means that there was no memory left, of the machine or of a GPU."""
    # torch is imported late, and so are its classes. Faiss and CUDA's libraries raise RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (
            isinstance(error, RuntimeError)
            and any(words in str(error).lower() for words in ("can't allocate memory", "out of memory"))
        )
    )


def _leave(text: str, status: int) -> None:
    say(text)
    sys.exit(status)
