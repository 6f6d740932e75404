"""`glann estimate`: what a run takes, from a few timed steps."""

import subprocess
import sys
from pathlib import Path

import pytest
from preparing import fill
from tiny_pipeline import TINY

from glann import estimate as module
from glann.errors import GlannError
from glann.estimate import _at, _slope, estimate
from glann.params import Params
from glann.presets import params_yaml
from glann.runtime.files import STAGES


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_only_what_grows_with_the_number_of_images_counts(clock: list[float]):
    def work(count: int) -> None:
        clock[0] += 30 + 0.25 * count

    assert _slope(work) == pytest.approx(0.25)


def test_a_search_grows_with_the_square_of_the_number_of_latents():
    assert _at(8_000, (4_000, 8_000), [1.0, 3.0]) == 3.0
    linear, square = 2e-4, 3e-9
    times = [linear * n + square * n**2 for n in (10_000, 20_000)]
    expected = linear * 100_000 + square * 100_000**2
    assert _at(100_000, (10_000, 20_000), times) == pytest.approx(expected)


def test_more_epochs_and_more_images_take_longer_and_sizes_are_exact(tmp_path: Path):
    fill(tmp_path, 120)
    changes = {"prepare": {"source": "folder", "path": str(tmp_path), "count": None, "resolution": 16}}
    small = Params.model_validate({**TINY, **changes, "prepare": changes["prepare"] | {"holdout": 24}})
    long = small.model_copy(update={"glo": small.glo.model_copy(update={"epochs": 2_000})})
    one, many = estimate(small), estimate(long)
    assert tuple(one) == STAGES
    assert many["glo"].seconds > 20 * one["glo"].seconds - 20 * one["prepare"].seconds
    assert all(need.seconds > 0 for need in one.values())
    assert one["prepare"].disk == 120 * 16 * 16 * 3
    latents = 4 * 96 * 8
    assert one["glo"].disk - one["imle"].disk == latents
    assert one["glo"].memory is not None and one["glo"].memory > 1e8  # of Python and torch alone


def test_missing_pictures_are_told_at_once():
    with pytest.raises(GlannError, match=r"prepare\.path: nowhere: No such file"):
        estimate(Params.model_validate({"prepare": {"source": "folder", "path": "nowhere"}}))


def test_the_command_prints_a_line_per_stage_and_the_sum(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(params_yaml(Params.model_validate(TINY)))
    result = subprocess.run(
        [sys.executable, "-m", "glann", "estimate"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["stage", *STAGES, "all"]
    assert all(line[1].isdigit() and line[2] in ("s", "min") for line in lines[1:])
