"""What the comparison with rivals writes and prints."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glann.evaluate.comparison import COLUMNS
from glann.peers.comparison import Comparison
from glann.peers.report import print_peers, write_peers_report
from glann.peers.runs import Run

HERE = Path()
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)


def compared(*models: str) -> Comparison:
    """Two trainings of each model, and one of ogan, which failed."""
    rows = ["train", *models, *(["energy_refined"] if "energy" in models else [])]
    runs = [
        Run(name, seed, HERE, 1_000_000 + seed, None if name == "glann" else 350.0, None)
        for name in models
        for seed in (0, 1)
    ]
    return Comparison(
        runs=[*runs, Run("ogan", 0, HERE, None, None, "all samples are [one] picture")],
        features="pixels",
        count=24,
        reference_count=24,
        table={name: dict.fromkeys(COLUMNS, 0.25) for name in rows},
        to_training={name: {"frechet_train": 0.5, "novelty": 1.5} for name in rows[1:]},
        spread={name: dict.fromkeys(COLUMNS, 0.125) for name in models},
        speed=dict.fromkeys(rows[1:], 1234.5),
        acceptance=0.75 if "energy" in models else None,
        curves={name: [(0.5, 4.0), (1.0, 2.0)] for name in models},
        samples=dict.fromkeys(rows[1:], IMAGES),
        reconstructed=dict.fromkeys(["holdout", "glann_projected", "nearest"], IMAGES),
        reconstructions={name: {"pixels": 12.5, "features": 1.5} for name in ("glann_projected", "nearest")},
        foreign={"glann_latents": {"auc": 0.875, "holdout": 24, "foreign": 24}},
    )


def test_metrics_have_a_tree_per_model(tmp_path: Path):
    write_peers_report(compared("glann", "energy"), IMAGES, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["glann"] == dict.fromkeys(COLUMNS, 0.25) | {
        "runs": 2,
        "failed": 0,
        "frechet_train": 0.5,
        "novelty": 1.5,
        "images": 1_000_000,
        "spread": 0.125,
    }
    assert metrics["energy"]["seconds"] == 350 and "seconds" not in metrics["glann"]
    assert metrics["ogan"] == {"runs": 1, "failed": 1}
    assert metrics["energy_refined"]["acceptance"] == 0.75
    assert metrics["foreign"]["glann_latents"]["auc"] == 0.875


def test_pictures_show_equal_numbers_of_samples(tmp_path: Path):
    write_peers_report(compared("glann", "energy"), IMAGES, tmp_path)
    sizes = {path.stem: Image.open(path).size for path in (tmp_path / "plots").rglob("*.png")}
    assert sizes.keys() == {"grids", "reconstructions", "refined", "frechet"}
    # 20 images in a row, not 12; three rows of hold-out images and two models, four of refinement.
    assert sizes["grids"][0] > 1.3 * sizes["refined"][0] and sizes["grids"][1] < sizes["refined"][1]
    assert sizes["refined"][1] > sizes["reconstructions"][1]
    points = json.loads((tmp_path / "plots/frechet.json").read_text())
    assert points[0] == {"images": "GLANN", "fraction": 0.5, "frechet": 4.0} and len(points) == 4


def colours(path: Path) -> set[tuple[int, ...]]:
    """The frequent colours of a picture that are no shades of grey."""
    counted = Image.open(path).convert("RGB").getcolors(1 << 20) or []
    return {colour for count, colour in counted if count > 100 and len({*colour}) > 1}


def test_a_model_has_the_same_colour_in_every_comparison(tmp_path: Path):
    found = {}
    for models in (["gan"], ["glann", "gan", "wgan_gp"], ["wgan_gp"]):
        (folder := tmp_path / "-".join(models)).mkdir()
        write_peers_report(compared(*models), IMAGES, folder)
        found[folder.name] = colours(folder / "plots/frechet.png")
    gan, both, wgan = found.values()
    assert gan and wgan and not gan & wgan
    assert both == gan | wgan


def test_without_energy_there_is_no_refinement_to_show(tmp_path: Path):
    write_peers_report(compared("glann", "gan"), IMAGES, tmp_path)
    assert not (tmp_path / "plots/pictures/refined.png").exists()


def test_the_table_has_a_row_per_model_and_names_failures(capsys: pytest.CaptureFixture[str]):
    print_peers(compared("glann", "wgan_gp", "energy"))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    for label in ("training images", "GLANN", "WGAN-GP", "energy, refined", "O-GAN"):
        assert [line for line in lines if line.strip().startswith(label)]
    assert (
        "seconds, as timed" in printed
        and " 350 " in printed
        and "samples/s" in printed
        and "1,234" in printed
    )
    assert "1,000,000" in printed and "O-GAN, seed 0: failed: all samples are [one] picture" in printed
    assert "…" not in printed and max(map(len, lines)) <= 150


def test_all_trainings_of_a_model_may_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    failed = [Run("glann", 0, HERE, None, None, "so"), Run("gan", 0, HERE, None, None, "why")]
    only = replace(compared(), runs=failed)
    write_peers_report(only, IMAGES, tmp_path)
    print_peers(only)
    assert "GAN, seed 0: failed: why" in capsys.readouterr().out
