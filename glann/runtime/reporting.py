"""Ending a program on an error: one line on stderr and an exit status."""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from glann.errors import GlannError
from glann.runtime.console import say

LONGEST = 1000  # characters of a message
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "alloc_failed")  # the last of CUDA's libraries
LESS_MEMORY = "draw fewer images, or fit fewer latents"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that users can do something about into one line on stderr and a non-zero exit status.

    These are `GlannError`, errors of the operating system, Ctrl-C, and running out of memory.
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
    """Return the message for an error, or None if users can do nothing about it.

    Parameters
    ----------
    error
        The error.
    less_memory
        Advice in case memory ran out.
    """
    if isinstance(error, GlannError):
        return _printable(str(error))
    if memory_ran_out(error):
        why = str(error)[:150]
        return _printable(f"memory ran out; {less_memory}{f' ({why})' if why else ''}")
    if (
        isinstance(error, ModuleNotFoundError)
        and error.name
        and not error.name.startswith(("glann", "stages"))
    ):
        package = error.name.split(".")[0]
        return _printable(f"this needs the package {package}; run: pip install 'glann[pipeline]'")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _printable(f"{where}{error.strerror or error}")
    return None


def _printable(text: str) -> str:
    """Put text on one line of limited length, and escape control characters."""
    text = " ".join(text.split())
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def memory_ran_out(error: Exception) -> bool:
    """Return whether an error means that the machine or a GPU ran out of memory."""
    # torch may not be imported yet, so its class is compared by name. Faiss and CUDA raise RuntimeError.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY))
    )


def _leave(text: str, status: int) -> None:
    say(text)
    sys.exit(status)
