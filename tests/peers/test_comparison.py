"""Comparing models of random weights: what is counted, and which files and images are read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from ruamel.yaml import YAML
from small import small_generator

from glann.errors import DamagedFileError, GlannError
from glann.evaluate.comparison import COLUMNS
from glann.evaluate.settings import Evaluate
from glann.networks.layers import initialize
from glann.peers.comparison import Comparison, Yardstick, compare_peers
from glann.peers.judges import JudgeNetwork, judges_of
from glann.peers.runs import find_runs, load_foreign
from glann.peers.settings import Peers, Refine
from glann.peers.train import identity
from glann.projection.projector import Known, Projector
from glann.runtime.compute import Execution, execution
from glann.runtime.files import file_digest, save_json
from glann.runtime.npy import digest_of_rows, save_npy
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.tensors import save_tensors
from glann.sample.generator import Generator

SETTINGS = Peers(models=["vae", "gan", "energy"], seeds=[0, 1], refine=Refine(steps=2))
EVALUATE = Evaluate(features="pixels", count=40)


def squares() -> np.ndarray:
    """48 images of 16 px, uint8 [48, 16, 16, 3]: a bright square somewhere on a dark ground."""
    draws = np.random.default_rng(0)
    images = np.full((48, 16, 16, 3), 30, np.uint8)
    for image in images:
        top, left = draws.integers(0, 10, 2)
        image[top : top + 6, left : left + 6] = draws.integers(120, 255, 3)
    return images


def drawn_by(seed: int) -> Generator:
    """A model of 16 px whose decoder has random weights; its samples vary with the latents."""
    on = execution(Compute(device="cpu", precision="float32", threads=1))
    decoder = small_generator(on).decoder
    initialize(decoder, stream(seed, "decoder"))
    return Generator(identity(8), decoder, on)


def save_trained(trained: Path) -> None:
    """Write two trainings of each model; that of gan with seed 0 has failed."""
    for name in ("glann", *SETTINGS.models):
        for seed in SETTINGS.seeds:
            folder = trained / f"{name}-{seed}"
            if (name, seed) == ("gan", 0):
                save_json(
                    folder / "result.json",
                    {"images": None, "failed": "the loss is not finite"},
                )
                continue
            save_json(folder / "result.json", {"images": 100 + 10 * seed, "seconds": 60.0, "failed": None})
            folder.joinpath("snapshots").mkdir()
            drawn_by(seed).save(folder / "generator.safetensors")
            for at in () if (name, seed) == ("glann", 0) else (0.5, 0.0625):
                drawn_by(seed + 5).save(folder / f"snapshots/{at:g}.safetensors")
            if name != "glann":
                judge = JudgeNetwork(judges_of(name, drawn_by(seed).decoder.architecture)["judge"])
                initialize(judge, stream(seed, name))
                judge.save(folder / "judge.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    save_trained(folder)
    return folder


@pytest.fixture(scope="module")
def comparison(trained: Path) -> Comparison:
    return compare(trained)


def compare(trained: Path) -> Comparison:
    """Hold-out images are training images, and foreign images hold-out images."""
    images, model = squares(), drawn_by(0)
    holdout, latents = images[8:32], torch.randn(48, 8, generator=stream(0, "latents"))
    return compare_peers(
        find_runs(trained, SETTINGS),
        SETTINGS,
        EVALUATE,
        0,
        images,
        holdout,
        holdout,
        Projector(model, Known(images, latents, holdout[:0])),
        latents,
    )


def test_each_model_has_a_row_and_energy_a_second_one(comparison: Comparison):
    assert [*comparison.table] == ["train", "glann", "vae", "gan", "energy", "energy_refined"]
    assert (comparison.count, comparison.reference_count) == (40, 24)
    for row in comparison.table.values():
        assert [*row] == [*COLUMNS] and np.isfinite([*row.values()]).all()
    assert comparison.table["train"]["frechet"] < comparison.table["glann"]["frechet"]
    assert 0 < (comparison.acceptance or 0) <= 1


def test_failed_trainings_are_left_out_of_the_means(comparison: Comparison):
    assert "gan" not in comparison.spread and len(comparison.curves["gan"]) == 3  # of the second seed
    assert {"glann", "vae", "energy", "energy_refined"} == {*comparison.spread}
    # All models of a seed are the same generator here.
    spread = comparison.spread["vae"]["frechet"]
    assert comparison.spread["glann"]["frechet"] == spread > 0
    larger = max(comparison.table["gan"]["frechet"], comparison.curves["vae"][-1][1])
    assert comparison.table["vae"]["frechet"] == pytest.approx(larger - spread / 2, rel=1e-5)


def test_curves_lead_from_snapshots_to_the_trained_model(comparison: Comparison):
    for curve in comparison.curves.values():
        assert [at for at, _ in curve] == [0.0625, 0.5, 1.0]
        assert curve[0][1] == curve[1][1] != curve[2][1]  # both snapshots are the same generator here


def test_a_curve_is_that_of_the_first_training_with_earlier_states(comparison: Comparison):
    # Those of GLANN are with seed 1, as all that there is of gan. Models of a seed are the same here.
    assert comparison.curves["glann"] == comparison.curves["gan"] != comparison.curves["vae"]


def test_training_images_are_their_own_nearest_images(comparison: Comparison):
    projected = ["vae_projected", "gan_projected", "energy_projected"]
    made = ["glann_projected", "vae_encoded", *projected, "nearest"]
    assert {*comparison.reconstructed} == {"holdout", *made} and {*comparison.reconstructions} == {*made}
    assert comparison.reconstructions["nearest"] == {"pixels": 0, "features": 0}
    assert all(comparison.reconstructions[name]["pixels"] > 10 for name in made[:-1])


def test_copies_are_not_new_and_unseen_images_are_as_new_as_usual(cpu: Execution):
    images, holdout = squares()[:40], squares()[40:]
    yardstick = Yardstick(EVALUATE, 0, images, holdout, cpu)
    _, copied = yardstick.measure("copies", lambda part: images[part])
    repeated = np.tile(holdout, (5, 1, 1, 1))
    _, unseen = yardstick.measure("unseen", lambda part: repeated[part])
    assert copied["novelty"] == 0 and unseen["novelty"] == pytest.approx(1)
    assert abs(copied["frechet_train"]) < unseen["frechet_train"] / 100


def test_nobody_tells_images_from_the_same_images(comparison: Comparison):
    assert [*comparison.foreign] == ["glann_projection", "glann_latents", "vae", "gan", "energy"]
    for found in comparison.foreign.values():
        assert found == {"auc": 0.5, "holdout": 24, "foreign": 24}


def test_images_that_no_latent_draws_are_told_by_what_is_left(trained: Path):
    """The model's own images against stripes, which it cannot draw."""
    model, runs = drawn_by(0), find_runs(trained, SETTINGS)
    latents = torch.randn(48, 8, generator=stream(0, "latents"))
    own = model.decode(latents, title=None)
    stripes = np.zeros_like(own[:24])
    stripes[:, ::2] = 255
    settings = SETTINGS.model_copy(update={"models": ["vae"], "seeds": [0]})
    found = compare_peers(
        [run for run in runs if (run.model, run.seed) in (("glann", 0), ("vae", 0))],
        settings,
        EVALUATE,
        0,
        own,
        own[:24],
        stripes,
        Projector(model, Known(own, latents, own[:0])),
        latents,
    )
    assert found.foreign["glann_projection"]["auc"] == found.foreign["vae"]["auc"] == 1
    assert [*found.to_training["vae"]] == ["frechet_train"]  # hold-out images are training images


def test_a_missing_training_is_named(trained: Path):
    with pytest.raises(GlannError, match=r"ogan-0: no result of a training; run: dvc repro peers/dvc\.yaml"):
        find_runs(trained, SETTINGS.model_copy(update={"models": ["vae", "ogan"]}))


def test_foreign_images_are_prepared_like_those_of_the_model(tmp_path: Path, cpu: Execution):
    model, path = small_generator(cpu).decoder.architecture, tmp_path / "digits.npy"
    save_npy(path, np.arange(3, dtype=np.uint8)[:, None, None] * 100 + np.zeros((1, 28, 28), np.uint8))
    found = load_foreign(str(path), squares(), model)
    assert found.shape == (3, 16, 16, 3) and found.dtype == np.uint8
    assert [np.unique(image).tolist() for image in found] == [[0], [100], [200]]


def test_without_foreign_images_the_hold_out_is_inverted(cpu: Execution):
    found = load_foreign(None, squares(), small_generator(cpu).decoder.architecture)
    assert np.array_equal(found, 255 - squares())


@pytest.mark.parametrize(
    "rows",
    [np.zeros((3, 16, 16), np.float32), np.zeros((3, 16), np.uint8), np.zeros((3, 16, 16, 2), np.uint8)]
    + [np.zeros((16, 16, channels), np.uint8) for channels in (1, 3, 4)],
)
def test_other_arrays_of_foreign_images_are_refused(tmp_path: Path, cpu: Execution, rows: np.ndarray):
    save_npy(tmp_path / "rows.npy", rows)
    with pytest.raises(GlannError, match=r"foreign: .*rows\.npy: expected uint8 \[n, h, w\] or"):
        load_foreign(str(tmp_path / "rows.npy"), squares(), small_generator(cpu).decoder.architecture)


def test_foreign_images_that_are_too_large_are_not_decoded(tmp_path: Path, cpu: Execution):
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.uint8, (2, 9500, 9500))
    del rows  # sparse
    with pytest.raises(
        GlannError, match=r"at most 89,478,485 pixels per picture can be read, found 9500 x 9500"
    ):
        load_foreign(str(tmp_path / "rows.npy"), squares(), small_generator(cpu).decoder.architecture)


def test_a_file_that_is_missing_is_named_with_its_key(cpu: Execution):
    for path in ("missing.npy", "."):
        with pytest.raises(GlannError, match=rf"^peers/params\.yaml: foreign: {path}: "):
            load_foreign(path, squares(), small_generator(cpu).decoder.architecture)


def test_the_stage_writes_metrics_and_plots(tmp_path: Path):
    images, model = squares(), drawn_by(0)
    for name, rows in (("images", images), ("holdout", images[:24])):
        save_npy(tmp_path / f"data/prepare/{name}.npy", rows)
    digests = {
        f"{name}.npy": digest_of_rows(rows) for name, rows in (("images", images), ("holdout", images[:24]))
    }
    save_json(tmp_path / "data/prepare/dataset.json", {"sha256": digests})
    save_npy(
        tmp_path / "data/glo/latents.npy", np.random.default_rng(0).normal(size=(48, 8)).astype("float32")
    )
    latents = file_digest(tmp_path / "data/glo/latents.npy")
    model.decoder.architecture = model.decoder.architecture.model_copy(update={"latents": latents})
    (tmp_path / "data/imle").mkdir()
    model.save(tmp_path / "data/imle/generator.safetensors")
    save_trained(tmp_path / "data/peers/trained")
    finished = {
        "history": [{"epoch": 1, "loss": 1.0}],
        "step": 0,
        "rows": 0,
        "sum": 0.0,
        "epochs": 1,
        "steps": 1,
        "finished": True,
    }
    for training in ("gan", "glann_glo", "imle"):  # of which the last is the main pipeline's
        save_tensors(
            tmp_path / f".checkpoints/{training}-0123456789abcdef.safetensors",
            {"weight": torch.zeros(1)},
            {"run": training, "folder": str(tmp_path), "position": finished},
        )
    for file, settings in (
        ("params.yaml", {"evaluate": EVALUATE.model_dump(), "compute": {"device": "cpu", "threads": 1}}),
        ("peers/params.yaml", SETTINGS.model_dump()),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        with (tmp_path / file).open("w") as opened:
            YAML().dump(settings, opened)
    result = subprocess.run(
        [sys.executable, "-m", "stages.peers.compare"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / ".checkpoints").iterdir()] == [
        "imle-0123456789abcdef.safetensors"
    ]
    assert "GAN, seed 0: failed: the loss is not finite" in result.stdout
    compared = tmp_path / "data/peers/compared"
    metrics = json.loads((compared / "metrics.json").read_text())
    assert (metrics["gan"]["runs"], metrics["gan"]["failed"], metrics["vae"]["images"]) == (2, 1, 105)
    assert metrics["vae"]["seconds"] == 60
    drawn = {path.name for path in (compared / "plots").rglob("*.*")}
    assert drawn == {"frechet.json", "frechet.png", "grids.png", "reconstructions.png", "refined.png"}


def test_the_judge_of_another_model_is_refused(trained: Path, tmp_path: Path, cpu: Execution):
    copy = tmp_path / "trained"
    shutil.copytree(trained, copy)
    runs = {(run.model, run.seed): run for run in find_runs(copy, SETTINGS)}
    for run in (runs["vae", 1], runs["energy", 1]):
        run.judge(cpu)
    shutil.copy(copy / "vae-1/judge.safetensors", copy / "energy-1/judge.safetensors")
    with pytest.raises(DamagedFileError, match=r"energy-1/judge\.safetensors: is the judge of another model"):
        runs["energy", 1].judge(cpu)


def test_a_result_that_is_none_is_one_line(trained: Path, tmp_path: Path):
    copy = tmp_path / "trained"
    shutil.copytree(trained, copy)
    (copy / "gan-1/result.json").write_text('{"a": 1}')
    with pytest.raises(GlannError, match=r"gan-1/result\.json: images: field required"):
        find_runs(copy, SETTINGS)


@pytest.mark.parametrize("name", ["vae-1/judge", "glann-1/generator", "gan-1/snapshots/0.5"])
def test_a_damaged_file_is_found_before_anything_is_measured(
    trained: Path, tmp_path: Path, cpu: Execution, monkeypatch: pytest.MonkeyPatch, name: str
):
    copy = tmp_path / "trained"
    shutil.copytree(trained, copy)
    for run in find_runs(copy, SETTINGS):
        run.check(cpu)
    monkeypatch.setattr("glann.peers.comparison.Yardstick", None)
    (copy / f"{name}.safetensors").write_bytes(b"damaged")
    with pytest.raises(GlannError, match=rf"{name}\.safetensors: "):
        compare(copy)
