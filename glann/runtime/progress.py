"""A progress bar with rate and remaining time; in log files, a line every half minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from glann.runtime.console import STDERR, say

LOG_SECONDS = 30
FORETELL_AFTER = 10  # seconds; before, the rate is not settled
WORTH_FORETELLING = 60  # seconds


@contextmanager
def progress(
    title: str,
    total: int,
    unit: str,
    done: int = 0,
    share_of_time: Callable[[float], float] = lambda share: share,
    foretell: Callable[[], str] | None = None,
    cycle: int = 0,
) -> Iterator[Callable[..., None]]:
    """Show the progress of a task.

    Parameters
    ----------
    title
        Name of the task.
    total, done
        Number of units, and of those that are done already.
    unit
        Name of the unit, e.g. "images".
    share_of_time
        Which share of its time a task has taken when a share of its units is done, both from 0 to 1.
    foretell
        If given, and if the task is long, one line says soon after the start how long it will take; what
        this returns, e.g. memory in use, is added. None: no such line.
    cycle
        Units after which everything that recurs has happened once; the line waits for it.

    Yields
    ------
    advance
        ``advance(units, note="")`` moves the bar; the note, e.g. a loss, is shown next to it.
    """
    started = time.monotonic()
    last_line = started
    here = 0
    told = foretell is None
    before = share_of_time(done / total) if total else 0.0

    def rate() -> float:
        return here / max(time.monotonic() - started, 1e-9)

    def seconds_left() -> float:
        now = share_of_time((done + here) / total) if total else 1.0
        return (time.monotonic() - started) * (1 - now) / max(now - before, 1e-9)

    def line(text: str) -> None:
        STDERR.write(f"{title}: {text.rstrip()}\n")
        STDERR.flush()

    console = Console(file=STDERR)  # type: ignore[arg-type]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", left="", note="")

        def advance(units: int = 1, note: str = "") -> None:
            nonlocal here, last_line, told
            here += units
            left = f"{duration(seconds_left())} left"
            bar.update(task, advance=units, rate=f"{rate():.4g} {unit}/s", left=left, note=note)
            now = time.monotonic()
            if foretell and not told and here >= cycle and now - started >= FORETELL_AFTER:
                told = True
                if seconds_left() >= WORTH_FORETELLING:
                    say(f"{title}: about {duration(seconds_left())} to go; {foretell()}")
            if not console.is_terminal and now - last_line >= LOG_SECONDS:
                last_line = now
                line(f"{done + here} of {total} {unit}, {rate():.4g}/s, {left} {note}")

        yield advance
    elapsed = time.monotonic() - started
    if not console.is_terminal and elapsed >= 1:
        line(f"{here} {unit} in {elapsed:.1f} s, {rate():.4g}/s")


def duration(seconds: float) -> str:
    """Return a time in words: "45 s", "7 min", "2 h 10 min" or "3 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
