"""Output to the terminal that never fails: the work it reports on is worth more."""

import os
import sys
from contextlib import suppress


class Unfailing:
    """stdout or stderr as a stream that drops what it cannot write, e.g. on a full disk or a closed pipe.

    Parameters
    ----------
    name
        "stdout" or "stderr"; looked up in `sys` at each call.
    """

    def __init__(self, name: str):
        self.name = name

    @property
    def encoding(self) -> str:
        """The encoding of the stream; "ascii" if it has none."""
        return getattr(getattr(sys, self.name), "encoding", None) or "ascii"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        stream = getattr(sys, self.name)
        return stream is not None and not stream.closed and stream.isatty()

    def write(self, text: str) -> int:
        """Write `text`, with "?" in place of characters that the encoding lacks."""
        stream = getattr(sys, self.name)
        if stream is not None:
            with suppress(OSError, ValueError):  # ValueError: the stream is closed
                stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what cannot be written."""
        stream = getattr(sys, self.name)
        if stream is None:
            return
        try:
            stream.flush()
        except ValueError:
            return
        except OSError:  # otherwise Python would try again when it exits, fail, and change the exit status
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


STDERR = Unfailing("stderr")
STDOUT = Unfailing("stdout")


def say(text: str) -> None:
    """Write one line to stderr, starting with "glann:"."""
    STDERR.write("glann: " + " ".join(text.split()) + "\n")
    STDERR.flush()
