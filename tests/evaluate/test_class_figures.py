"""What is said about the samples of each class."""

import json

import numpy as np
import pytest
import torch
from test_report import LOSSES, evaluation

from glann.evaluate.classes import COLUMNS, by_class
from glann.evaluate.report import print_table, write_report
from glann.images.classes import Classes

NAMES = ["a", "b", "<c>"]


def features(labels: np.ndarray, seed: int) -> torch.Tensor:
    """Normal features around a place of each class, 6 standard deviations apart."""
    noise = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(seed))
    return noise + 6 * torch.eye(4)[torch.from_numpy(labels)]


@pytest.fixture
def classes() -> Classes:
    return Classes(NAMES, np.repeat([0, 1, 2], [200, 150, 50]), np.repeat([0, 1, 2], [60, 30, 5]))


def described(classes: Classes, drawn: np.ndarray, asked: np.ndarray | None) -> dict[str, dict[str, float]]:
    chosen = np.arange(len(classes.images))
    train, holdout = features(classes.images, 0), features(classes.holdout, 1)
    return by_class(classes, chosen, train, holdout, features(drawn, 2), asked)


def test_shares_show_which_classes_are_drawn_too_seldom(classes: Classes):
    found = described(classes, np.repeat([0, 1], [300, 100]), None)
    assert [*found] == NAMES
    assert found["a"]["share"] == 0.5 and found["a"]["drawn"] == pytest.approx(0.75, abs=0.02)
    assert found["<c>"]["drawn"] < 0.01 and found["<c>"]["images"] == 50
    assert found["a"]["accuracy_holdout"] > 0.95 and "accuracy_holdout" not in found["<c>"]  # of 5 images
    assert "accuracy" not in found["a"]


def test_samples_of_another_class_than_the_one_asked_for_are_noticed(classes: Classes):
    asked = np.repeat([0, 1, 2], [100, 100, 100])
    drawn = np.repeat([0, 1, 0, 2], [100, 50, 50, 100])  # half of what should be b is a
    found = described(classes, drawn, asked)
    assert found["a"]["accuracy"] > 0.95 and found["b"]["accuracy"] == pytest.approx(0.5, abs=0.05)
    assert abs(found["a"]["kid"]) < 0.2 < found["b"]["kid"]
    assert found["a"]["precision"] > found["b"]["precision"] + 0.2
    assert "kid" not in found["<c>"] and found["<c>"]["accuracy"] > 0.95


def test_nothing_is_said_about_a_hundred_classes_or_one():
    many = Classes([str(i) for i in range(101)], np.arange(101), np.arange(101))
    one = Classes(["a", "b"], np.zeros(20, np.int64), np.array([1]))
    rows = torch.randn(101, 4)
    assert by_class(many, np.arange(101), rows, rows, rows, None) == {}
    assert by_class(one, np.arange(20), rows[:20], rows[:1], rows, None) == {}


def test_the_report_has_a_table_of_classes(classes: Classes, tmp_path, capsys):
    found = described(classes, np.repeat([0, 1], [300, 100]), np.repeat([0, 1], [300, 100]))
    result = evaluation("train", "reconstructions", "glann")
    result = result.__class__(**{**vars(result), "classes": found})
    write_report(result, result.shown["train"], LOSSES, "", tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["classes"] == found
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Classes</h2>" in page and "&lt;c&gt;" in page and "<c>" not in page
    assert all(COLUMNS[key] in page for key in found["a"])
    print_table(result)
    printed = capsys.readouterr().out
    assert "<c>" in printed and "acc." in printed and "…" not in printed and "drawn" in printed
