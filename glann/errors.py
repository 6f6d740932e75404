"""The one error meant for people, and how a program ends on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class GlannError(Exception):
    """A mistake the user can mend; its text is one line: where, what is wrong, what to do."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `GlannError` or an operating-system error into one line on stderr and exit status 1."""
    try:
        yield
    except GlannError as error:
        _leave(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        _leave("interrupted", status=130)


def _leave(text: str, status: int = 1) -> None:
    print("glann: " + " ".join(text.split()), file=sys.stderr)
    sys.exit(status)
