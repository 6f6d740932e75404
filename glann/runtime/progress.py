"""A progress bar with rate and remaining time; in log files, a line every half minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from glann.runtime.console import STDERR

LOG_SECONDS = 30


@contextmanager
def progress(title: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show the progress of a task.

    Parameters
    ----------
    title
        Name of the task.
    total, done
        Number of units, and of those that are done already.
    unit
        Name of the unit, e.g. "images".

    Yields
    ------
    advance
        ``advance(units, note="")`` moves the bar; the note, e.g. a loss, is shown next to it.
    """
    started = time.monotonic()
    last_line = started
    here = 0

    def rate() -> float:
        return here / max(time.monotonic() - started, 1e-9)

    def line(text: str) -> None:
        STDERR.write(f"{title}: {text.rstrip()}\n")
        STDERR.flush()

    console = Console(file=STDERR)  # type: ignore[arg-type]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")

        def advance(units: int = 1, note: str = "") -> None:
            nonlocal here, last_line
            here += units
            bar.update(task, advance=units, rate=f"{rate():.4g} {unit}/s", note=note)
            now = time.monotonic()
            if not console.is_terminal and now - last_line >= LOG_SECONDS:
                last_line = now
                left = f"{(total - done - here) / max(rate(), 1e-9):.0f} s left"
                line(f"{done + here} of {total} {unit}, {rate():.4g}/s, {left} {note}")

        yield advance
    elapsed = time.monotonic() - started
    if not console.is_terminal and elapsed >= 1:
        line(f"{here} {unit} in {elapsed:.1f} s, {rate():.4g}/s")
