"""What a long task says of itself in a log: rate, remaining time, and once how long it will take."""

import pytest

from glann.runtime import progress as module
from glann.runtime.progress import duration, progress


class Clock:
    """Replaces `time` for the module: it moves only if told to."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines_of(clock, capsys, seconds, total, **keys):
    """Do `total` units, each of which takes `seconds(number)`, and return what was said."""
    with progress("work", total, "units", **keys) as advance:
        for i in range(total):
            clock.now += seconds(i)
            advance(1)
    return capsys.readouterr().err.splitlines()


def test_a_line_every_half_minute_has_rate_and_remaining_time(clock, capsys):
    lines = lines_of(clock, capsys, lambda i: 1, 90)
    assert lines[0] == "work: 30 of 90 units, 1/s, 60 s left"
    assert lines[1:3] == ["work: 60 of 90 units, 1/s, 30 s left", "work: 90 of 90 units, 1/s, 0 s left"]
    assert lines[3] == "work: 90 units in 90.0 s, 1/s"


def test_the_remaining_time_allows_for_slower_steps_to_come(clock, capsys):
    # Half of the units take 1 s, the others 3 s: 40 of 80 units take a quarter of the time.
    pace = {"share_of_time": lambda share: min(share, 0.5) * 0.5 + max(share - 0.5, 0) * 1.5}
    lines = lines_of(clock, capsys, lambda i: 1 if i < 40 else 3, 80, **pace)
    assert lines[0] == "work: 30 of 80 units, 1/s, 2 min left"  # 10 + 120 s
    assert lines[1].endswith("/s, 100 s left") or lines[1].endswith("/s, 99 s left")


def test_what_was_done_before_does_not_count_as_fast(clock, capsys):
    with progress("work", 100, "units", done=40) as advance:
        clock.now += 30
        advance(30)
    assert capsys.readouterr().err.splitlines()[0] == "work: 70 of 100 units, 1/s, 30 s left"


def test_a_long_task_foretells_once_how_long_it_takes(clock, capsys):
    lines = lines_of(clock, capsys, lambda i: 1, 400, foretell=lambda: "it uses 3 GiB")
    told = [line for line in lines if line.startswith("glann:")]
    assert told == ["glann: work: about 6 min to go; it uses 3 GiB"]
    assert lines.index(told[0]) == 0
    assert not any(
        line.startswith("glann:") for line in lines_of(clock, capsys, lambda i: 1, 50, foretell=lambda: "no")
    )


def test_it_waits_until_what_recurs_has_happened_once(clock, capsys):
    lines = lines_of(
        clock, capsys, lambda i: 30 if i % 100 == 0 else 0.1, 1000, foretell=lambda: "", cycle=100
    )
    assert [line for line in lines if line.startswith("glann:")] == ["glann: work: about 6 min to go;"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (120, "2 min"), (5400, "90 min"), (7800, "2 h 10 min"), (273_600, "3 d 4 h")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text
