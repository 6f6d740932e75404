"""Each metric against a value known without it, on feature vectors drawn here."""

import random

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from glann.evaluate.metrics import (
    density_coverage,
    f_beta,
    frechet_distance,
    kernel_distance,
    prd,
    precision_recall,
)


def normal(n, f, seed):
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed))


def modes(n, seed, shown=8):
    """Rows around the first `shown` of 8 far corners, equally many around each."""
    corners = 20 * torch.eye(8)[torch.arange(n) % shown]
    return corners + normal(n, 8, seed)


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    # Rows moved and scaled until their mean and covariance are exactly 0 and 1.
    rows = normal(500, 3, 0).double()
    rows = rows - rows.mean(0)
    rows = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T.cov()).T)
    mean, spread = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 0.5, 1.0])
    expected = mean.square().sum() + (spread - 1).square().sum()
    assert frechet_distance(rows * spread + mean, rows) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_of_turned_gaussians_is_torch_fidelitys():
    a, b = normal(400, 6, 1) @ normal(6, 6, 2) + 0.3, normal(300, 6, 3) @ normal(6, 6, 4)
    statistics = [fid_features_to_statistics(rows.double()) for rows in (a, b)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-9)


def test_frechet_distance_is_exact_with_fewer_rows_than_features():
    rows = normal(16, 512, 0)
    assert frechet_distance(rows, rows.flip(0)) < 1e-9
    assert frechet_distance(rows + 1, rows) == pytest.approx(512, rel=1e-6)  # a shift by 1 in 512 directions


def test_kernel_distance_is_torch_fidelitys_on_one_subset_of_all_rows():
    a, b = normal(200, 10, 0) + 0.5, normal(200, 10, 1)
    settings = {"kid_subsets": 1, "kid_subset_size": 200, "verbose": False}
    theirs = kid_features_to_metric(a.double(), b.double(), **settings)["kernel_inception_distance_mean"]
    assert kernel_distance(a, b) == pytest.approx(theirs, rel=1e-9)


def test_kernel_distance_is_zero_on_average_between_sets_of_one_distribution():
    distances = [kernel_distance(normal(50, 4, 2 * i), normal(80, 4, 2 * i + 1)) for i in range(200)]
    error = np.std(distances) / np.sqrt(len(distances))
    assert abs(np.mean(distances)) < 3 * error
    assert min(distances) < 0  # unbiased, not clipped


def test_precision_and_recall_count_the_rows_inside_the_others_balls():
    # A line of points at distance 1: the ball around a point inside reaches 2 to its third neighbour.
    reference = torch.arange(20.0)[:, None]
    inside, outside = reference[:10] + 0.25, reference[:10] + 1000
    assert precision_recall(reference, reference) == (1, 1)
    assert precision_recall(outside, reference) == (0, 0)
    precision, recall = precision_recall(torch.cat([inside, outside]), reference)
    # The last ball of `inside` is around 9.25, and reaches 3 to 6.25: 0 to 12 are within.
    assert precision == pytest.approx(0.5)
    assert recall == pytest.approx(13 / 20)


def test_density_and_coverage_count_the_balls_that_hold_a_row():
    # On this line a reference ball reaches 1 to the second neighbour, 2 at both ends.
    reference = torch.arange(10.0)[:, None]
    density, coverage = density_coverage(torch.tensor([[4.5], [100.0]]), reference, k=2)
    assert density == pytest.approx(2 / (2 * 2))  # 4.5 is in the balls of 4 and 5; 2 rows, k = 2
    assert coverage == pytest.approx(2 / 10)


def test_density_of_the_reference_itself_is_one_and_coverage_all():
    reference = normal(300, 3, 0)
    density, coverage = density_coverage(reference, reference)
    assert density == pytest.approx(1, abs=0.01)
    assert coverage == 1


def test_prd_is_full_for_equal_sets_and_empty_for_disjoint_ones():
    reference = modes(800, 0)
    assert f_beta(*prd(reference, reference)) == pytest.approx((1, 1), abs=1e-6)
    assert f_beta(*prd(reference + 1000, reference)) == pytest.approx((0, 0), abs=1e-6)


def test_prd_of_known_shares_is_the_papers_formula():
    # Two points, so two clusters: reference 1/2 and 1/2, generated all in the first.
    reference, features = torch.tensor([[0.0], [9.0]]).repeat(50, 1), torch.zeros(30, 1)
    precision, recall = prd(features, reference, clusters=2)
    # λ = 1, the middle of the curve: Σ min(P, Q) = 1/2 for both.
    assert precision[500] == pytest.approx(0.5)
    assert recall[500] == pytest.approx(0.5)
    assert precision.max() == pytest.approx(1)
    assert recall.max() == pytest.approx(0.5)  # half of the reference is never generated


def test_dropping_half_of_the_modes_lowers_recall_and_not_precision():
    reference, all_modes, half = modes(800, 0), modes(800, 1), modes(800, 2, shown=4)
    f8, f1_8 = f_beta(*prd(all_modes, reference))
    f8_half, f1_8_half = f_beta(*prd(half, reference))
    assert min(f8, f1_8) > 0.9
    assert f8_half == pytest.approx(0.5, abs=0.1)  # half of the reference is out of reach
    assert f1_8_half > 0.9

    precision, recall = precision_recall(all_modes, reference)
    precision_half, recall_half = precision_recall(half, reference)
    assert recall_half == pytest.approx(recall / 2, abs=0.05)
    assert precision_half == pytest.approx(precision, abs=0.05)
    assert density_coverage(half, reference)[1] == pytest.approx(0.5, abs=0.05)
    assert frechet_distance(half, reference) > 100 * frechet_distance(all_modes, reference)
    assert kernel_distance(half, reference) > 10 * abs(kernel_distance(all_modes, reference))


@pytest.mark.parametrize("n", [2, 3, 16])
def test_tiny_sets_give_finite_numbers(n):
    a, b = normal(n, 64, 0), normal(2, 64, 1)
    for features, reference in ((a, b), (b, a)):
        values = (
            frechet_distance(features, reference),
            kernel_distance(features, reference),
            *precision_recall(features, reference),
            *density_coverage(features, reference),
            *f_beta(*prd(features, reference)),
        )
        assert np.isfinite(values).all()


def test_equal_images_give_finite_numbers():
    same = torch.ones(30, 8)  # a collapsed model: k-means finds one cluster, balls have no size
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)
    assert kernel_distance(same, same) == pytest.approx(0, abs=1e-9)
    assert f_beta(*prd(same, same)) == pytest.approx((1, 1), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_metrics_depend_on_their_arguments_alone():
    features, reference = normal(300, 16, 0), normal(200, 16, 1) + 0.3

    def values():
        return np.concatenate(
            [
                *prd(features, reference, seed=3),
                [frechet_distance(features, reference), kernel_distance(features, reference)],
                precision_recall(features, reference),
                density_coverage(features, reference),
            ]
        )

    before = torch.random.get_rng_state(), np.random.get_state(), random.getstate()
    first = values()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert random.getstate() == before[2]

    torch.rand(3), np.random.rand(3)
    assert np.array_equal(values(), first)
    assert not np.array_equal(prd(features, reference, seed=4)[0], prd(features, reference, seed=3)[0])
