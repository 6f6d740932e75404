"""What speed is measured against must itself work."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from benchmarks.data import latent_cloud
from benchmarks.matching import Adaptive, assign, blurred, reject_nearest
from benchmarks.study import OTHERS, VARIANTS, Study, replaced, row, varied
from glann.config import Params
from glann.errors import GlannError
from glann.imle import NoiseDraws


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
    glo = {"latent_noise": 0.1, "loss": {"levels": 3}}
    params = Params.model_validate({"glo": glo, "imle": {"residuals": 0.5}})
    for name, changes in VARIANTS.items():
        changed = varied(params, {key: value for key, value in changes.items() if key not in OTHERS}, 0)
        assert (changed == params) == (name == "params.yaml" or changes.keys() <= OTHERS), name
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


@pytest.mark.parametrize(
    "name",
    [name for name, changes in VARIANTS.items() if "glo_with" in changes],
)
def test_replaced_parts_train_and_come_back_from_their_files(name: str, shapes: np.ndarray, tmp_path: Path):
    glo = {"latent_dim": 8, "decoder": {"width": 16}, "epochs": 6, "batch_size": 16}
    params = Params.model_validate(
        {
            "compute": {"device": "cpu", "threads": 1},
            "glo": glo,
            "imle": {"noise_dim": 4, "mapping": {"width": 16, "depth": 1}, "epochs": 1},
            "evaluate": {"features": "pixels"},
        }
    )
    study = Study(shapes[:36], shapes[36:], params, tmp_path / "kept")
    first = study.run(VARIANTS[name], 0, tmp_path / "first.png")
    plain = study.run({}, 0, tmp_path / "plain.png")
    assert plain["frechet_reconstructions"] != first["frechet_reconstructions"]
    with replaced(VARIANTS[name]["glo_with"]):
        varied_params = varied(params, {k: v for k, v in VARIANTS[name].items() if k not in OTHERS}, 0)
        latents, decoder, measured = study.glo(varied_params, VARIANTS[name]["glo_with"])
        again = study.measure_reconstructions(latents, decoder)["frechet"]
    assert again == pytest.approx(measured["frechet"], rel=0.3 if "noise per pixel" in name else 1e-6)


def test_no_two_variants_share_what_is_kept(shapes: np.ndarray, tmp_path: Path):
    params = Params.model_validate(
        {"evaluate": {"features": "pixels"}, "compute": {"device": "cpu", "threads": 1}}
    )
    study = Study(shapes[:36], shapes[36:], params, tmp_path)
    folders: dict[tuple[str, str], str] = {}
    for changes in VARIANTS.values():
        settings = {key: value for key, value in changes.items() if key not in OTHERS}
        own = varied(params, settings, 0)
        parts = {**changes.get("glo_with", {}), **changes.get("imle_with", {}), "match": changes.get("match")}
        folder = study.kept_as(0, parts, own.glo, own.imle).name
        what = (str(own.glo) + str(own.imle), str(parts))
        assert folders.setdefault(what, folder) == folder
    assert len(set(folders.values())) == len(folders) > 40


class Given(NoiseDraws):
    """Draws that are given, so that what the mapping makes of noise is the noise itself."""

    def __init__(self, noise: torch.Tensor):
        super().__init__(len(noise), noise.shape[1], 0, 0, noise.device)
        object.__setattr__(self, "noise", noise)

    def blocks(self) -> Iterator[torch.Tensor]:
        yield from self.noise.split(90)

    def rows(self, rows: torch.Tensor) -> torch.Tensor:
        return self.noise[rows]


def itself(noise: torch.Tensor) -> torch.Tensor:
    return noise


def test_rejected_candidates_are_the_ones_nearest_to_a_latent():
    latents, candidates = latent_cloud(50), latent_cloud(200, seed=1)
    distances, noise = reject_nearest(0.3)(latents, Given(candidates), itself, latents)
    to_latent = torch.cdist(candidates, latents).square().amin(1)
    assert distances.min() >= to_latent.sort().values[59]  # 60 of 200 are rejected
    assert torch.allclose((latents - noise).square().sum(1), distances, atol=1e-5)


def test_a_one_to_one_match_takes_no_candidate_twice_and_costs_least():
    latents = latent_cloud(60)
    distances, noise = assign(latents, Given(latents[torch.randperm(60)] + 1e-4), itself, latents)
    assert torch.allclose(noise, latents, atol=1e-3) and distances.max() < 1e-5
    _, noise = assign(latents[:20], Given(latents), itself, latents)
    assert len(noise.unique(dim=0)) == 20
    with pytest.raises(GlannError, match=r"imle\.candidates: a one-to-one match needs 1 or more"):
        assign(latents, Given(latents[:59]), itself, latents)


def test_an_adaptive_match_stays_until_its_latent_is_reached():
    latents, match = latent_cloud(2), Adaptive(0.5)
    first, kept = match(latents, Given(latents + 0.05), itself, latents)
    moved = latents + torch.tensor([[0.03], [0.02]])  # where the mapping now puts what was matched
    fresh = latents + 0.01
    distances, noise = match(latents, Given(fresh), lambda x: moved if x is kept else x, kept)
    assert torch.equal(noise, torch.stack([kept[0], fresh[1]]))
    assert torch.allclose(distances, torch.tensor([0.03, 0.01]) ** 2 * latents.shape[1], rtol=1e-2)
    assert match.at_match is not None and match.at_match.tolist() == [first[0].item(), distances[1].item()]


def test_blurred_noise_keeps_its_length_and_moves_a_little():
    latents = latent_cloud(40)
    _, noise = blurred(0.05)(latents, Given(latents), itself, latents)
    assert torch.allclose(noise.norm(dim=1), latents.norm(dim=1), atol=1e-5)
    assert 0.2 < (noise - latents).norm(dim=1).mean() < 0.6  # 0.05 in each of 64 numbers is 0.4
