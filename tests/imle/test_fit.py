import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from glann.errors import GlannError
from glann.imle.calibration import correct_moments, keep_residuals, moments
from glann.imle.fit import fit_imle, regression_loss
from glann.imle.matching import Matching
from glann.imle.settings import Imle
from glann.neighbors.bfloat16 import nearest_row
from glann.neighbors.search import _spread, nearest, nearest_in_blocks
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.params import load_params
from glann.runtime.checkpoint_files import stored
from glann.runtime.compute import Execution, execution
from glann.runtime.npy import load_latents
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.signals import Stopped, stop_signals
from glann.training.checkpoints import Checkpoints

SMALL = Imle(noise_dim=2, mapping={"width": 64, "depth": 2}, epochs=40, lr=0.003)


def clusters(n: int = 600) -> torch.Tensor:
    """Five tight groups on the unit circle, float32 [n, 2]."""
    angles = torch.arange(n) % 5 * (2 * math.pi / 5) + 0.05 * torch.randn(n, generator=stream(0, "angles"))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_nearest_is_what_comparing_all_pairs_finds():
    queries, database = torch.randn(50, 5), torch.randn(400, 5)
    distances, rows = nearest(queries, database, k=3)
    expected = torch.cdist(queries, database).square().topk(3, largest=False)
    assert torch.equal(rows, expected.indices) and torch.allclose(distances, expected.values, atol=1e-4)


def test_a_database_in_blocks_is_searched_as_a_whole_one():
    queries, database = torch.randn(50, 5), torch.randn(400, 5)
    distances, rows = nearest(queries, database)
    for index in ("Flat", "IVF4,Flat;nprobe=4"):
        found, found_rows = nearest_in_blocks(queries, database.split(70), index)
        assert torch.equal(found_rows, rows[:, 0]) and torch.allclose(found, distances[:, 0], atol=1e-4)


@pytest.mark.parametrize("scale", [0.01, 1, 1000])
@pytest.mark.parametrize("shift", [0, 3])
def test_bfloat16_products_find_exactly_what_float32_does(scale: float, shift: float):
    draws = stream(0, "scan")
    database = scale * (torch.randn(5000, 12, generator=draws) + shift)
    database[3000:3500] = database[0] + scale * 1e-4 * torch.randn(500, 12, generator=draws)  # all but equal
    queries = torch.cat([database[:700], scale * (torch.randn(4500, 12, generator=draws) + shift)])
    distances, rows = nearest_row(queries, database)
    exact = (queries.double()[:, None] - database.double()[None]).square().sum(dim=2)
    best, expected = exact.min(dim=1)
    # Two rows as near as float32 can tell may be taken for each other.
    assert (rows == expected).float().mean() > 0.99
    assert torch.allclose(exact.gather(1, rows[:, None])[:, 0].sqrt(), best.sqrt(), atol=1e-3 * scale)
    assert torch.allclose(
        distances.double(), exact.gather(1, rows[:, None])[:, 0], rtol=1e-3, atol=1e-6 * scale
    )


def test_an_approximate_index_mostly_agrees():
    queries, database = torch.randn(200, 4), torch.randn(4000, 4)
    _, exact = nearest(queries, database)
    _, found = nearest(queries, database, index="IVF8,Flat")
    assert found.dtype == torch.int64
    # One of eight cells is searched: chance alone would agree in 1 of 4000.
    assert (found == exact).float().mean() > 0.5


def test_a_query_whose_cell_is_empty_is_searched_exactly():
    database = torch.randn(128, 3)
    queries = torch.randn(500, 3) * 5
    distances, rows = nearest(queries, database, k=4, index="IVF64,Flat")  # two rows a cell, four wanted
    assert rows.min() >= 0
    assert torch.allclose(distances, (queries[:, None] - database[rows]).square().sum(dim=2), rtol=1e-3)


KILL_OR_HANG = ["HNSW1", "HNSW0", "RR0,Flat", "OPQ4_1000,Flat", "PQ8x0", "PQ8x4fs_0", "NSG0", "NSG1000"]
END_IN_TRACEBACKS = [
    "IVF4,Flat;nprobe=0",
    "IVF0,Flat",
    "PQ4x4;ht=3",
    "IVF4,PQ2,RFlat;k_factor_rf=0",
    "Residual2x6",
]
SEARCH_ELSEWHERE = ["LSH", "PCA4,Flat", "L2norm,Flat", "OPQ2,PQ2", "RaBitQ", "IVF4,RaBitQ"]
NOT_THE_SAME_TWICE = ["NSG16", "NSG16,Flat"]
MISTAKEN = [
    "",
    "Flatt",
    "flat",
    "Flat;nprobe=1",
    "HNSW8;nprobe=2",
    "IVF4,Flat;nprobe=5",
    "IVF4,Flat;probes=3",
]
MISTAKEN += ["IVF4,Flat\n", "IVF٤,Flat", "IVF4,Flat;nprobe=²", "IVF9999999,Flat", "HNSW129", "PQ2x9"]


@pytest.mark.parametrize(
    "index", KILL_OR_HANG + END_IN_TRACEBACKS + SEARCH_ELSEWHERE + NOT_THE_SAME_TWICE + MISTAKEN
)
def test_an_index_that_cannot_be_meant_is_refused_with_the_settings(index: str, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({"imle": {"index": index}}))
    with pytest.raises(GlannError) as error:
        load_params(path)
    assert str(error.value).startswith(f"{path}: imle.index: ") and "\n" not in str(error.value)


@pytest.fixture
def no_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused, or was finished, must not come to the first search."""

    def too_late(*_: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(Matching, "renew", too_late)


def test_an_index_that_does_not_suit_the_latents_is_refused_before_anything_is_drawn(
    run: Execution, no_matching: None
):
    for index, said in {
        "IVF1201,Flat": "1201 lists, but there are only 1200 candidates",
        "PQ3x4": "it has 2 numbers; choose a number that divides 2",
        "IVF2,PQ3": "it has 2 numbers; choose a number that divides 2",
        "PQ2x8": "256 codes a part, but there are only 200 candidates",
    }.items():
        latents = clusters(100 if "x8" in index else 600)
        with pytest.raises(GlannError, match=rf"^imle\.index: .*{said}"):
            fit_imle(latents, SMALL.model_copy(update={"index": index}), 0, run)


SEARCHES = """
import random, torch
from glann.errors import GlannError
from glann.neighbors.indexes import parse_index
from glann.neighbors.search import nearest

torch.set_num_threads(1)
pieces = ["Flat", "IVF", "HNSW", "PQ", "SQ4", "SQ6", "SQ8", "SQfp16", "x", "x4", "x5", ",", ",", ";",
          "nprobe=", "efSearch=", "NSG", "LSH", "_", " ", "0", "1", "2", "3", "4", "7", "16", "64", "²"]
draw = random.Random(0)
strings = {"".join(draw.choices(pieces, k=draw.randint(1, 7))) for _ in range(200_000)}
strings |= {"PQ2x8", "IVF3,PQ1x8", "IVF16,SQ6;nprobe=16", "HNSW64,SQ8;efSearch=64"}
def allowed(text):
    try:
        return parse_index(text)
    except ValueError:
        return None

searched = refused = 0
for text in 3 * sorted(filter(allowed, strings)):
    d, m, k = draw.randint(1, 6), draw.choice([3, 20, 260]), draw.randint(1, 3)
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(m))
    database = draw.choice([rows, rows[:1].expand(m, d), rows[:2].repeat(m, 1)[:m], 1e4 + rows])
    queries = torch.cat([database[:5], 3 * rows[:5]])
    print(repr(text), d, m, k, flush=True)
    try:
        distances, found = nearest(queries, database, k, text)
    except GlannError as error:
        assert str(error).startswith("imle.index: ") and "failed" not in str(error), error
        refused += 1
        continue
    searched += 1
    exact = (queries[:, None].double() - database[found].double()).square().sum(dim=2)
    if text != "Flat":
        assert distances.isfinite().all() and torch.allclose(distances.double(), exact, rtol=1e-5)
    assert (distances.diff(dim=1) >= 0).all() and all(len(set(row)) == k for row in found.tolist())
assert searched > 100 and refused > 100, (searched, refused)
"""


def test_every_index_that_the_settings_allow_finds_rows_at_their_distances_or_says_why_not():
    """In a process of its own, since what Faiss cannot do may end it."""
    command = [sys.executable, "-c", SEARCHES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()[-3:]


@pytest.mark.parametrize(
    "index", ["IVF16,SQ4", "IVF16,PQ2x4;nprobe=2", "HNSW8;efSearch=32", "PQ4x4", "HNSW8,SQ8"]
)
def test_the_same_index_finds_the_same_rows_with_any_number_of_threads(index: str):
    queries, database = torch.randn(2000, 8), torch.randn(20_000, 8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(nearest(queries, database, index=index)[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


def test_an_index_learns_from_as_many_rows_as_it_needs_from_the_whole_database():
    rows = torch.arange(1000.0)[:, None]
    assert _spread(rows, 4).flatten().tolist() == [0, 250, 500, 750]
    assert _spread(rows, 1000) is rows


def test_an_index_for_which_memory_runs_out_says_so():
    """Links of 128 for each of four million rows are 4 GiB; a process may take one more than it has."""
    code = """
import psutil, resource, torch
from glann.neighbors.search import nearest
nearest(torch.randn(9, 2), torch.randn(99, 2))
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**30,) * 2)
nearest(torch.randn(9, 2), torch.randn(2**22, 2), index="HNSW128")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (
        "GlannError: imle.index: HNSW128 of 4194304 rows of 2 numbers: memory ran out; lower" in done.stderr
    )


@pytest.mark.gpu
@pytest.mark.parametrize("index", ["Flat", "IVF8,Flat", "IVF8,SQ6", "IVF8,PQ4", "HNSW8", "IVF8,PQ2x4", "SQ8"])
def test_the_gpu_finds_what_the_cpu_finds(index: str):
    queries, database = torch.randn(100, 16), torch.randn(3000, 16)
    _, expected = nearest(queries, database)
    distances, found = nearest(queries.cuda(), database.cuda(), index=index)
    assert found.is_cuda and distances.is_cuda
    of_rows = (queries[:, None] - database[found.cpu()]).square().sum(dim=2)
    assert torch.allclose(distances.cpu(), of_rows, rtol=1e-3, atol=1e-3)
    # One cell of eight is searched, by short codes in the worst case; chance would agree in 1 of 3000.
    assert (found.cpu() == expected).float().mean() > (0.99 if index == "Flat" else 0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("latents", ["sphere", "cloud"])
def test_imle_fits_on_the_gpu(latents: str):
    of = {"sphere": clusters, "cloud": lambda: 5 + 2 * clusters().double().cuda()}
    result = fit_imle(of[latents](), SMALL, 0, execution(Compute(device="cuda")))
    assert result.history[-1]["loss"] < 0.2


def test_a_shared_draw_answers_with_the_median_or_the_mean():
    """The gradient at the best answer for three latents, two of them equal."""
    wanted = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    for kind, best in (("distance", [0.0, 1.0]), ("squared", [1.0, 1.0])):
        answer = torch.tensor(best, requires_grad=True)
        regression_loss(answer.expand(3, 2), wanted, kind).backward()
        # The two equal latents hold the median against the third's pull, a third of a unit.
        assert answer.grad is not None and answer.grad.norm() <= 1 / 3 + 1e-6
        with torch.no_grad():
            near = [
                regression_loss((answer + step).expand(3, 2), wanted, kind) for step in (-0.01, 0.0, 0.01)
            ]
        assert near[1] < near[0] and near[1] < near[2]


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_every_cluster_is_reached(kind: str, run: Execution):
    config = SMALL.model_copy(update={"mapping": SMALL.mapping.model_copy(update={"kind": kind})})
    latents = clusters()
    result = fit_imle(latents, config, 0, run)
    with torch.no_grad():
        samples = result.mapping(torch.randn(2000, 2, generator=stream(1, "noise")))
    _, rows = nearest(samples, latents)
    counts = torch.bincount(rows[:, 0] % 5, minlength=5) / 2000
    # The nearest candidate may serve many latents, so the share of a group varies about 0.2; none is dropped.
    assert counts.min() > 0.03
    losses = [entry["loss"] for entry in result.history]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


@pytest.mark.parametrize(("center", "spread"), [(5, 0.002), (1000, 1), (0.1, 1e-4), (3e8, 1e8), (0, 1e-9)])
def test_a_cloud_far_from_0_is_no_sphere(center: float, spread: float, run: Execution):
    cloud = center + spread * torch.randn(400, 8, generator=stream(0, "cloud"))
    mapping = fit_imle(cloud, SMALL.model_copy(update={"epochs": 2}), 0, run).mapping
    with torch.no_grad():
        samples = mapping(torch.randn(4000, 2, generator=stream(1, "noise")))
    assert not mapping.on_sphere
    assert samples.std(dim=0).numpy() == pytest.approx(cloud.std(dim=0).numpy(), rel=0.2)
    assert (samples.mean(dim=0) - cloud.mean(dim=0)).abs().max() < 0.2 * spread + 1e-6 * center


@pytest.mark.parametrize("scale", [1e20, 1e-24])
def test_latents_whose_squares_float32_cannot_hold_are_refused(scale: float, run: Execution):
    with pytest.raises(GlannError, match=r"latents: the largest number is .*; scale them to about 1 first"):
        fit_imle(scale * clusters(), SMALL, 0, run)


def test_latents_of_any_norm_are_fitted(run: Execution):
    cloud = 100 + 5 * torch.randn(500, 3, generator=stream(0, "cloud"))
    mapping = fit_imle(cloud, SMALL, 0, run).mapping
    with torch.no_grad():
        samples = mapping(torch.randn(2000, 2, generator=stream(1, "noise")))
    assert (samples.mean(dim=0) - 100).abs().max() < 3  # the cloud's spread is 5
    assert 2.5 < samples.std(dim=0).mean() < 8  # around the cloud's 5, from a mapping trained for a second


@pytest.mark.parametrize("on_sphere", [True, False])
def test_samples_have_the_mean_and_covariance_of_the_latents(on_sphere: bool, run: Execution):
    cloud = torch.randn(1000, 4, generator=stream(0, "cloud")) * torch.tensor([3.0, 1.0, 1.0, 0.3]) + 1
    cloud = F.normalize(cloud, dim=1) if on_sphere else cloud
    noise = torch.randn(20_000, 2, generator=stream(1, "noise"))

    def error(correct: bool) -> float:
        config = SMALL.model_copy(update={"epochs": 3, "correct_moments": correct})
        mapping = fit_imle(cloud, config, 0, run).mapping
        with torch.no_grad():
            samples = mapping(noise)
        means = (samples.mean(dim=0) - cloud.mean(dim=0)).norm()
        return (means + (torch.cov(samples.T) - torch.cov(cloud.T)).norm()).item()

    assert error(correct=True) < 0.2 * error(correct=False)


def mapping_of(dim: int, on_sphere: bool) -> MappingNetwork:
    mapping = MappingNetwork(MappingArchitecture(config=SMALL.mapping, noise_dim=2, latent_dim=dim))
    mapping.on_sphere.fill_(on_sphere)
    return mapping


def test_off_the_sphere_even_the_least_spread_is_corrected_exactly():
    spreads = torch.logspace(0, -2, 16)
    latents = torch.randn(2000, 16, generator=stream(0, "latents")) * spreads
    outputs = torch.randn(5000, 16, generator=stream(0, "outputs")) * spreads.flip(0).add(spreads) + 0.1
    mean, covariance = moments([latents])
    mapping = mapping_of(16, on_sphere=False)
    correct_moments(mapping, outputs, mean, covariance)
    reached, spread = moments(mapping.corrected(outputs).split(700))
    assert torch.allclose(reached, mean, atol=1e-6)
    relative = torch.linalg.solve(covariance, spread) - torch.eye(16)
    assert relative.abs().max() < 1e-4  # rows are float32


def test_moments_in_blocks_are_those_of_all_rows():
    rows = 1000 + torch.randn(999, 5, generator=stream(0, "rows"))
    mean, covariance = moments(rows.split(100))
    assert torch.allclose(mean, rows.double().mean(dim=0), rtol=1e-12)
    assert torch.allclose(covariance, torch.cov(rows.double().T, correction=0), rtol=1e-9)


def test_correcting_moments_takes_little_memory_beside_the_samples():
    code = """
import resource, torch
from test_fit import mapping_of
from glann.imle.calibration import correct_moments, moments
samples = torch.nn.functional.normalize(torch.randn(65_536, 128), dim=1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
correct_moments(mapping_of(128, True), samples, *moments([samples[:500]]))
print(peak() - before)
"""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/imle'}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True)
    assert float(done.stdout) < 40  # MiB; the samples in float64 are 64, of which some copies were held


def test_latents_of_more_numbers_than_memory_can_correct_are_refused_before_training(
    run: Execution, no_matching: None
):
    with pytest.raises(GlannError, match=r"imle: needs about \d+\.\d GiB .*lower glo\.latent_dim \(200000\)"):
        fit_imle(torch.ones(2, 200_000), SMALL, 0, run)


def test_a_run_stopped_while_it_is_calibrated_goes_on_there_and_ends_the_same(
    run: Execution, tmp_path: Path, request: pytest.FixtureRequest
):
    latents = torch.randn(300, 160, generator=stream(0, "latents"))
    config = SMALL.model_copy(update={"epochs": 1, "residuals": 0.5})
    checkpoints = Checkpoints(tmp_path, "imle", "", 60)

    def ask_to_stop_when_trained() -> None:
        while not any(checkpoint.state == "finished" for checkpoint in stored(tmp_path)):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="run the same command to continue"), stop_signals():
        threading.Thread(target=ask_to_stop_when_trained).start()
        fit_imle(latents, config, 0, run, checkpoints)
        pytest.fail("calibration did not stop")
    whole = fit_imle(latents, config, 0, run).mapping
    request.getfixturevalue("no_matching")
    resumed = fit_imle(latents, config, 0, run, checkpoints).mapping
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_residuals_of_pairs_nearby_give_back_what_a_regression_leaves(run: Execution):
    """Two numbers of a latent follow the noise; a third is spread that one number of noise cannot reach."""
    turn = torch.rand(1500, generator=stream(0, "turn")) * 2 * math.pi
    height = torch.randn(1500, generator=stream(1, "height")) * (
        0.2 + 0.2 * turn.cos()
    )  # not alike everywhere
    cloud = torch.stack([3 * turn.cos(), 3 * turn.sin(), height], dim=1)
    config = SMALL.model_copy(
        update={"noise_dim": 1, "epochs": 20, "correct_moments": False, "candidates": 1.0}
    )
    noise = torch.randn(4000, 1, generator=stream(2, "noise"))

    def spread(share: float, at: float) -> float:
        mapping = fit_imle(cloud, config.model_copy(update={"residuals": share}), 0, run).mapping
        with torch.no_grad():
            samples = mapping(noise)
        return samples[(samples[:, 0] / 3 * at > 0.7), 2].std().item()

    wide, narrow = (height[(turn.cos() * at > 0.7)].std().item() for at in (1, -1))
    assert spread(0.0, 1) < 0.5 * wide  # without them
    assert 0.7 * wide < spread(1.0, 1) < 1.3 * wide
    assert spread(0.0, 1) < spread(0.5, 1) < spread(1.0, 1)
    assert spread(1.0, -1) < 3 * narrow < spread(1.0, 1)


def test_an_anchor_borrows_its_residual_from_a_neighbour():
    architecture = MappingArchitecture(config=SMALL.mapping, noise_dim=2, latent_dim=3)
    mapping = MappingNetwork(architecture)
    candidates = torch.randn(200, 3, generator=stream(0, "candidates"))
    pulls = torch.randn(200, 3, generator=stream(0, "pulls"))
    keep_residuals(mapping, candidates, candidates + pulls, 0.5, stream(0, "draws"))
    residuals = mapping.nearest_residual(candidates)
    apart, lenders = (0.5 * pulls[:, None] - residuals).norm(dim=2).min(dim=0)
    assert apart.max() < 1e-5
    between = (candidates[:, None] - candidates).norm(dim=2)
    ranks = between.argsort(dim=1).argsort(dim=1)[torch.arange(200), lenders]  # 0 is the anchor itself
    assert set(ranks.tolist()) == {1, 2, 3}

    # Three latents share the first of two candidates: it has only the fourth's residual to borrow.
    shared = MappingNetwork(architecture)
    keep_residuals(
        shared, candidates[[0, 0, 0, 1]], candidates[[0, 0, 0, 1]] + pulls[:4], 1.0, stream(0, "draws")
    )
    assert len(shared.anchors) == 2
    assert torch.allclose(shared.nearest_residual(candidates[:1]), pulls[3:4], atol=1e-6)
    alone = MappingNetwork(architecture)
    keep_residuals(alone, candidates[[0, 0]], candidates[[0, 0]] + pulls[:2], 1.0, stream(0, "draws"))
    assert not alone.nearest_residual(candidates[:5]).any()

    two = MappingNetwork(architecture)
    keep_residuals(two, candidates[:2], candidates[:2] + pulls[:2], 1.0, stream(0, "draws"))
    assert torch.allclose(two.nearest_residual(candidates[:2]), pulls[:2].flip(0), atol=1e-6)


def test_residuals_are_kept_of_so_many_latents_at_most(run: Execution, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("glann.imle.calibration.RESIDUALS", 100)
    config = SMALL.model_copy(update={"epochs": 1, "residuals": 0.5})
    mapping = fit_imle(clusters(), config, 0, run).mapping
    assert 2 <= len(mapping.anchors) == len(mapping.residuals) <= 100
    without = fit_imle(clusters(), config.model_copy(update={"residuals": 0}), 0, run).mapping
    assert not {"anchors", "residuals"} & without.state_dict().keys()


def test_a_mapping_comes_back_from_its_file(run: Execution, tmp_path: Path):
    mapping = fit_imle(clusters(), SMALL.model_copy(update={"epochs": 1}), 0, run).mapping
    mapping.save(tmp_path / "mapping.safetensors")
    noise = torch.randn(5, 2)
    assert torch.equal(MappingNetwork.load(tmp_path / "mapping.safetensors")(noise), mapping(noise))


@pytest.mark.parametrize("array", [np.ones(3), np.ones((2, 2), int), np.ones((0, 4)), np.ones((2, 2, 2))])
def test_latents_that_are_no_float_table_are_one_line(array: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "latents.npy", array)
    with pytest.raises(GlannError, match=r"latents\.npy: expected floats \[n, d\], found"):
        load_latents(tmp_path / "latents.npy")


def test_one_latent_or_a_nan_among_them_is_refused(run: Execution):
    for latents in (torch.ones(1, 4), F.pad(torch.ones(5, 3), (0, 1), value=math.nan)):
        with pytest.raises(GlannError, match="2 or more rows of finite numbers"):
            fit_imle(latents, SMALL, 0, run)
