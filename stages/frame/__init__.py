"""The frame around the work of every stage: errors become one line, signals end it cleanly."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from glann.runtime.code import AT_START  # noqa: F401 (must come first, before code can change)
from glann.runtime.console import STDOUT
from glann.runtime.reporting import one_line_errors
from glann.runtime.signals import end_in_order

if TYPE_CHECKING:
    from stages.frame.dvc import Place
    from stages.frame.running import Stage


@contextmanager
def stage(place: "str | Place") -> Iterator["Stage"]:
    """Run the work of a stage in this context: one of dvc.yaml, by its name, or one at another place.

    Slow imports belong inside, so that signals and the end of DVC are noticed meanwhile.
    """
    with one_line_errors(), end_in_order():
        from stages.frame.dvc import Place
        from stages.frame.running import Stage, in_words

        if isinstance(place, str):
            place = Place(place, Path("data", place))
        with in_words(place):
            running = Stage(place)
            yield running
            STDOUT.flush()
            running.finish()
    if "LOCAL_RANK" not in os.environ:
        os._exit(0)  # Python needs a second to exit with torch, during which an edit would go unnoticed
