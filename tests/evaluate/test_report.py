"""What evaluate writes for people to look at."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from glann.evaluate.comparison import COLUMNS
from glann.evaluate.evaluation import Evaluation
from glann.evaluate.page import CURVES, FEW, PICTURES
from glann.evaluate.report import LABELS, write_report


def evaluation(*names: str) -> Evaluation:
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (20, 16, 16, 3), np.uint8)
    curves = {
        name: (np.array([1.0, 0.8 - i / 10, 0.0]), np.array([0.0, 0.5, 1.0])) for i, name in enumerate(names)
    }
    return Evaluation(
        features="pixels",
        count=20,
        reference_count=20,
        table={name: dict.fromkeys(COLUMNS, 0.25) for name in names},
        curves=curves,
        novelty=[{"percent": p, "glann": p / 50, "holdout": p / 40} for p in range(101)],
        shown=dict.fromkeys(names, images),
        nearest=images,
        searched=20,
        weakest=[("missed", images[:3])],
        classes={},
    )


LOSSES = {
    "glo": [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.3}],
    "imle": [{"epoch": 1, "loss": 0.9, "nearest": 0.8}],
}


def write(folder):
    result = evaluation("train", "reconstructions", "glann", "glo_flow")
    write_report(result, result.shown["train"], LOSSES, "seed: 0\nglo: {latent_dim: <b>}\n", folder)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_report_warns_of_few_hold_out_images(folder, tmp_path):
    assert "With so few hold-out images" in (folder / "report.html").read_text()
    result = replace(evaluation("train", "reconstructions", "glann"), reference_count=FEW)
    write_report(result, result.shown["train"], LOSSES, "", tmp_path)
    assert "With so few" not in (tmp_path / "report.html").read_text()


def test_the_report_holds_every_picture_and_refers_to_nothing_else(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(CURVES) + len(PICTURES)
    for (name, _), source in zip([*PICTURES, *CURVES], pictures, strict=True):
        content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        assert content == (folder / "plots" / name).read_bytes()
        Image.open(io.BytesIO(content)).verify()
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|src=\"(?!data:)", text)
    assert "glo: {latent_dim: <b>}" in page.text and all(
        LABELS[name] in page.text for name in ("train", "glo_flow")
    )
    assert page.text.count("0.25") == 4 * len(COLUMNS)


def test_precision_and_recall_are_a_list_of_points_for_whatever_rows_there_are(folder):
    points = json.loads((folder / "plots/prd.json").read_text())
    assert {point["images"] for point in points} == {"train", "reconstructions", "glann", "glo_flow"}
    assert all(set(point) == {"images", "recall", "precision"} for point in points)
    at_half = [point["precision"] for point in points if point["recall"] == 0.5]
    assert at_half == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_curves_can_be_told_apart_and_every_byte_is_the_same_again(folder, tmp_path_factory):
    picture = np.asarray(Image.open(folder / "plots/prd.png").convert("RGB"))
    drawn = {tuple(colour) for colour in picture.reshape(-1, 3)}
    assert {(0, 0, 0), (0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)} <= drawn
    again = tmp_path_factory.mktemp("again")
    write(again)
    assert (again / "report.html").read_bytes() == (folder / "report.html").read_bytes()
