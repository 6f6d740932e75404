"""What speed is measured against must itself work."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from benchmarks.data import latent_cloud
from benchmarks.matching import assign, reject_nearest
from benchmarks.study import OTHERS, VARIANTS, Study, row, varied
from glann.config import Params
from glann.errors import GlannError


@pytest.mark.parametrize(
    ("arguments", "ignorance"),
    # The mean distance of a digit's pixels from the median digit, and the squared one between two latents.
    [(["glo", "--epochs=3"], 0.17), (["imle", "--n=2000", "--epochs=12"], 2.0)],
)
def test_the_reference_learns(arguments: list[str], ignorance: float):
    command = [sys.executable, "-m", "benchmarks.reference", *arguments, "--threads=1"]
    said = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    assert said["seconds"] > 0 and said["loss"] < 0.6 * ignorance


def test_every_variant_changes_the_settings_and_only_the_seed_changes_besides():
    params = Params.model_validate({"glo": {"latent_noise": 0.1, "loss": {"levels": 3, "crop": 32}}})
    for name, changes in VARIANTS.items():
        changed = varied(params, {key: value for key, value in changes.items() if key not in OTHERS}, 0)
        assert (changed == params) == (name == "params.yaml" or bool(OTHERS & changes.keys())), name
    assert varied(params, VARIANTS["imle: epochs threefold"], 0).imle.epochs == 3 * params.imle.epochs
    assert varied(params, VARIANTS["imle: candidates half"], 0).imle.candidates == params.imle.candidates / 2
    assert varied(params, {}, 7) == params.model_copy(update={"seed": 7})


def test_a_study_measures_variants_on_the_same_latents(shapes: np.ndarray, tmp_path: Path):
    params = Params.model_validate(
        {
            "compute": {"device": "cpu", "threads": 1},
            "glo": {"latent_dim": 8, "decoder": {"width": 8}, "epochs": 2, "batch_size": 16},
            "imle": {"noise_dim": 4, "mapping": {"width": 16, "depth": 1}, "epochs": 2},
            "evaluate": {"features": "pixels"},
        }
    )
    study = Study(shapes[:36], shapes[36:], params, tmp_path / "kept")
    names = ("params.yaml", "imle: epochs threefold", "instead of imle: Gaussian", "latent noise: 0")
    runs = {name: study.run(VARIANTS[name], 0, tmp_path / f"{i}.png") for i, name in enumerate(names)}
    first, longer, gaussian, silent = runs.values()
    assert len([*(tmp_path / "kept").iterdir()]) == 2 + 3 and len([*tmp_path.glob("*.png")]) == 4
    assert first["frechet_reconstructions"] == longer["frechet_reconstructions"]
    assert first["frechet_reconstructions"] != silent["frechet_reconstructions"]
    assert len({first["frechet"], longer["frechet"], gaussian["frechet"]}) == 3
    assert row("both", [{**first, "recall": 0.25}, {**first, "recall": 0.75}]).split(" | ")[6] == "0.5 ± 0.25"


def test_rejected_candidates_are_the_ones_nearest_to_a_latent():
    latents, candidates = latent_cloud(50), latent_cloud(200, seed=1)
    distances, rows = reject_nearest(0.3)(latents, [candidates[:90], candidates[90:]], "Flat", torch.float32)
    to_latent = torch.cdist(candidates, latents).square().amin(1)
    assert distances.min() >= to_latent.sort().values[59]  # 60 of 200 are rejected
    assert torch.allclose((latents - candidates[rows]).square().sum(1), distances, atol=1e-5)


def test_a_one_to_one_match_takes_no_candidate_twice_and_costs_least():
    latents = latent_cloud(60)
    shuffled = torch.randperm(60)
    distances, rows = assign(latents, [latents[shuffled] + 1e-4], "Flat", torch.float32)
    assert torch.equal(shuffled[rows], torch.arange(60)) and distances.max() < 1e-5
    _, rows = assign(latents[:20], [latents], "Flat", torch.float32)
    assert len(rows.unique()) == 20
    with pytest.raises(GlannError, match=r"imle\.candidates: a one-to-one match needs 1 or more"):
        assign(latents, [latents[:59]], "Flat", torch.float32)
