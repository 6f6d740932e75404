"""What is said at the terminal. It never fails: the work that it tells of is worth more."""

import os
import sys
from contextlib import suppress


class Unfailing:
    """stdout or stderr as a stream that drops what it cannot write, as where a disk is full or a pipe closed.

    Parameters
    ----------
    name
        "stdout" or "stderr"; looked up in `sys` at each call.
    """

    def __init__(self, name: str):
        self.name = name

    @property
    def encoding(self) -> str:
        """The encoding of the stream; "ascii" where there is none."""
        return getattr(getattr(sys, self.name), "encoding", None) or "ascii"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        stream = getattr(sys, self.name)
        return stream is not None and not stream.closed and stream.isatty()

    def write(self, text: str) -> int:
        """Write `text`, with "?" for characters that the encoding lacks."""
        stream = getattr(sys, self.name)
        if stream is not None:
            with suppress(OSError, ValueError):  # ValueError: the stream is closed
                stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Bring what was written to where it goes, or lose it."""
        stream = getattr(sys, self.name)
        if stream is None:
            return
        try:
            stream.flush()
        except ValueError:
            return
        except OSError:  # what is left would fail once more when Python ends, and change its exit status
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


STDERR = Unfailing("stderr")
STDOUT = Unfailing("stdout")


def say(text: str) -> None:
    """Say something in one line on stderr."""
    STDERR.write("glann: " + " ".join(text.split()) + "\n")
    STDERR.flush()
