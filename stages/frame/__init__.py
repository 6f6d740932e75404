"""What stands around the work of every stage: its errors become one line, and signals end it in order."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glann.runtime.code import AT_START  # noqa: F401 (before anything else of the package: see there)
from glann.runtime.console import STDOUT
from glann.runtime.reporting import one_line_errors
from glann.runtime.signals import end_in_order

if TYPE_CHECKING:
    from stages.frame.running import Stage


@contextmanager
def stage(name: str) -> Iterator["Stage"]:
    """Run a stage's work within.

    What takes time to import is imported inside, so that a signal, and the end of DVC, are seen meanwhile.
    """
    with one_line_errors(), end_in_order():
        from stages.frame.running import Stage, in_words

        with in_words(name):
            running = Stage(name)
            yield running
            STDOUT.flush()
            running.finish()
    if "LOCAL_RANK" not in os.environ:
        os._exit(0)  # Python takes a second to end with torch, in which an edit would go unnoticed
