"""The course of a training run: losses that go wrong, and what is kept then."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glann.errors import DivergedError, GlannError
from glann.training.checkpoints import Checkpoints
from glann.training.course import Course
from glann.training.shards import Shard


def course_of(
    stage: str,
    epochs: int,
    checkpoints: Checkpoints | None = None,
    network: nn.Module | None = None,
    n: int = 4,
    optimizer: torch.optim.Optimizer | None = None,
    falls: bool = True,
) -> Course:
    """The course of a run over n rows in batches of 4."""
    parts: dict[str, Any] = {"network": network or nn.Linear(2, 2)}
    parts |= {} if optimizer is None else {"optimizer": optimizer}
    return Course(
        stage, "rows", parts, Shard(n, 4), epochs, "constant", checkpoints, "do something", falls=falls
    )


def test_a_step_that_ruins_the_weights_is_noticed_before_they_are_saved(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, "glo", "test", minutes=0)
    network = nn.Linear(2, 2)
    message = "glo: epoch 1, step 2: the loss is nan; the last good"
    with pytest.raises(GlannError, match=message), course_of("glo", 1, checkpoints, network, n=8) as course:
        course.step(torch.ones(()), 4)
        before = checkpoints.path.read_bytes()
        nn.init.constant_(network.bias, math.inf)
        course.step(torch.ones(()), 4)
    assert checkpoints.path.read_bytes() == before


def test_a_run_that_diverges_stops_and_its_last_good_checkpoint_stays(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, "glo", "test", minutes=0)
    network = nn.Linear(2, 2)
    message = r"glo: epoch 5: the loss has been more than 10 times its best \(1\)"
    with pytest.raises(GlannError, match=message), course_of("glo", 9, checkpoints, network) as course:
        for loss in (2.0, 1.0, 30.0, 40.0, 50.0, 60.0):
            nn.init.constant_(network.bias, loss)
            course.step(torch.tensor(loss), 4)
            course.end_epoch()
    saved = checkpoints.load()
    assert saved and (saved[0]["network.bias"] == 1).all() and len(course.history) == 5


def test_a_loss_that_need_not_fall_stops_no_run_until_it_is_infinite():
    with pytest.raises(DivergedError) as error, course_of("gan", 9, falls=False) as course:
        for loss in (2.0, 1.0, 30.0, 40.0, 50.0, -60.0, math.inf):
            course.step(torch.tensor(loss), 4)
            course.end_epoch()
    assert error.value.what == "gan: epoch 7, step 1: the loss is inf" and len(course.history) == 6


@pytest.mark.parametrize("minutes", [0, 60])
def test_gradients_that_overflow_are_noticed_in_their_epoch(tmp_path: Path, minutes: float):
    """Adam's steps are zero then, so weights and loss stay finite, but the run could not be resumed."""
    checkpoints = Checkpoints(tmp_path, "gan", "test", minutes=minutes)
    network = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    with (
        pytest.raises(DivergedError) as error,
        course_of("gan", 2, checkpoints, network, 4, optimizer) as course,
    ):
        for gradient in (1.0, 1e30):
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()
            course.step(torch.ones(()), 4)
            course.end_epoch()
    assert error.value.what == ("gan: epoch 2, step 1: gradients are so large that their squares overflow")
    saved = checkpoints.load()
    assert (saved is not None) == (minutes == 0)
    assert saved is None or all(value.isfinite().all() for value in saved[0].values())


def test_a_loss_that_jumps_and_comes_back_goes_on():
    # Near zero a loss may well be ten times its best; after a jump it may take an epoch to come back.
    with course_of("glo", 9) as course:
        for loss in (2.0, 0.001, 0.02, 0.03, 0.02, 0.05, 30.0, 40.0, 0.01):
            course.step(torch.tensor(loss), 4)
            course.end_epoch()
    assert [entry["epoch"] for entry in course.history] == [*range(1, 10)]


def test_an_infinite_loss_names_the_place_the_last_checkpoint_and_a_remedy(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, "imle", "test", minutes=0)
    message = f"step 2: the loss is inf; the last good checkpoint is {checkpoints.path}; do something"
    with pytest.raises(GlannError, match=message), course_of("imle", 3, checkpoints, n=8) as course:
        course.step(torch.ones(()), 4)
        course.step(torch.tensor(math.inf), 4)


@pytest.mark.parametrize("rank", [0, 1])
def test_progress_ends_where_it_should_with_any_share_of_the_rows(rank: int, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    @contextmanager
    def progress(_: str, total: int, __: str, done: int, *___: object) -> Iterator[Callable[..., None]]:
        assert (total, done) == (126, 0)
        yield lambda count, _: seen.append(count)

    monkeypatch.setattr("glann.training.course.progress", progress)
    parts: dict[str, Any] = {"network": nn.Linear(2, 2)}
    with Course("glo", "images", parts, Shard(63, 10, rank, 2), 2, "constant", None, "") as course:
        for _ in course.epochs():
            for batch in course.batches(0):
                course.step(torch.ones(()), len(batch.rows))
            course.end_epoch()
    assert sum(seen) == 126 and {*seen} == {9}


def test_each_epoch_shuffles_the_rows_in_another_way():
    orders = []
    with course_of("glo", 3, n=64) as course:
        for _ in course.epochs():
            orders.append([batch.rows.tolist() for batch in course.batches(0)])
            for rows in orders[-1]:
                course.step(torch.ones(()), len(rows))
            course.end_epoch()
    assert all(sorted(row for rows in order for row in rows) == [*range(64)] for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
