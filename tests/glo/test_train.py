import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from glann.errors import GlannError
from glann.glo.batches import one_ahead
from glann.glo.latents import LatentNoise, LatentTable, initial_latents
from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.images.tensors import to_float, upload
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute
from glann.training.checkpoints import Checkpoints
from glann.training.course import Course
from glann.training.optimization import adam, learning_rate_factor, moving_average, step
from glann.training.settings import ParameterGroup
from glann.training.shards import Shard
from glann.training.state import flatten_state, restore_state

TINY = {"decoder": {"width": 8}, "latent_dim": 8, "epochs": 4, "batch_size": 16}


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    factors = [learning_rate_factor("cosine", i, 2000) for i in range(2001)]
    assert factors[0] == 0.01 and factors[:100] == sorted(factors[:100])
    assert factors[99:] == sorted(factors[99:], reverse=True) and factors[99] > 0.99
    assert factors[1000] == pytest.approx(0.5) and factors[2000] == pytest.approx(0)
    assert [learning_rate_factor("constant", i, 20) for i in (0, 1, 19)] == [0.5, 1, 1]


def test_a_parameter_goes_to_the_first_group_that_matches():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [
        ParameterGroup(match="0.*", lr_multiplier=0.0),
        ParameterGroup(match="*.weight", lr_multiplier=0.5),
    ]
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = adam(module, 0.1, groups)
    module(torch.ones(1, 2)).sum().backward()
    step(optimizer, 0.1)
    moved = [(p - b).abs().max().item() for p, b in zip(module.parameters(), before, strict=True)]
    # Adam's first step is the learning rate in every entry: frozen, frozen, half, whole, half, whole.
    assert moved == pytest.approx([0, 0, 0.05, 0.1, 0.05, 0.1], abs=1e-6)
    with pytest.raises(GlannError, match=r'"conv" matches none of: 0\.weight, 0\.bias'):
        adam(module, 0.1, [ParameterGroup(match="conv")])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", [3, -4]), ("clip_norm", [0.6, -0.8]), ("clip_value", [1, -1]), ("normalize", [0.6, -0.8])],
)
def test_gradients_are_transformed_by_group(kind: str, expected: list[float]):
    parameter = nn.Module()
    parameter.w = nn.Parameter(torch.zeros(2))
    optimizer = adam(parameter, 0.1, [ParameterGroup(match="*", gradient=kind, limit=1.0)])
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.w.grad.tolist()))
    parameter.w.grad = torch.tensor([3.0, -4.0])
    step(optimizer, 0.1)
    assert seen[0] == pytest.approx(expected, abs=1e-5)


def test_normalize_lengthens_a_short_gradient_and_clip_norm_does_not():
    for kind, expected in (("normalize", 2.0), ("clip_norm", 0.5)):
        module = nn.Module()
        module.w = nn.Parameter(torch.zeros(2))
        optimizer = adam(module, 0.1, [ParameterGroup(match="*", gradient=kind, limit=2.0)])
        norms = []
        optimizer.register_step_pre_hook(lambda *_, m=module, out=norms: out.append(m.w.grad.norm().item()))
        module.w.grad = torch.tensor([0.3, 0.4])
        step(optimizer, 0.1)
        assert norms[0] == pytest.approx(expected, rel=1e-4)


def test_the_latent_table_steps_each_row_as_an_adam_of_its_own_would():
    start = nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    gradients = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    visits = [torch.tensor([0, 1, 2]), torch.tensor([2, 3]), torch.tensor([2, 0])]
    table = LatentTable(start.clone(), Shard(6, 3))
    for rows, gradient in zip(visits, gradients, strict=True):
        latents = table.rows(rows)
        (latents * gradient[rows]).sum().div(len(rows)).backward()  # a mean over the batch, as the loss is
        table.step(rows, latents, lr=0.1, scale=len(rows))
    for row in range(6):
        expected = start[row].clone().requires_grad_()
        optimizer = torch.optim.Adam([expected], lr=0.1, betas=(0.5, 0.999))
        for rows, gradient in zip(visits, gradients, strict=True):
            if row in rows:
                expected.grad = gradient[row]
                optimizer.step()
                with torch.no_grad():
                    expected /= expected.norm()
        assert torch.allclose(table.latents[row], expected.detach(), atol=1e-6)


def test_pca_puts_like_images_near_each_other(shapes: np.ndarray):
    pairs = np.concatenate([shapes, np.clip(shapes.astype(int) + 3, 0, 255).astype(np.uint8)])
    latents = initial_latents(pairs, Glo(latent_dim=8), 0, 0, 96)
    assert torch.allclose(latents.norm(dim=1), torch.ones(96), atol=1e-5)
    nearest = torch.cdist(latents, latents).fill_diagonal_(9).argmin(dim=1)
    assert (nearest == (torch.arange(96) + 48) % 96).float().mean() > 0.95


def test_more_latent_dimensions_than_images_are_filled_with_noise(shapes: np.ndarray):
    latents = initial_latents(shapes[:4], Glo(latent_dim=64), 0, 0, 4)
    assert latents.shape == (4, 64) and latents.isfinite().all() and (latents != 0).all()


def test_unwhitened_components_keep_the_weight_that_they_have_in_the_images(shapes: np.ndarray):
    plain, white = (
        initial_latents(shapes, Glo(latent_dim=8, latent_init=init), 0, 0, 48)
        for init in ("pca", "pca_whitened")
    )
    spread, even = plain.square().mean(dim=0), white.square().mean(dim=0)
    assert spread[0] > 3 * spread[7]
    assert even.max() < 2 * even.min()


def test_images_that_do_not_differ_get_latents_of_length_1():
    images = np.full((20, 16, 16, 3), 7, np.uint8)
    latents = initial_latents(images, Glo(latent_dim=8), 0, 0, 20)
    assert torch.allclose(latents.norm(dim=1), torch.ones(20), atol=1e-5)


def test_noise_has_its_length_follows_the_latents_and_is_the_same_for_any_number_of_ranks():
    draws = torch.Generator().manual_seed(0)
    first = nn.functional.normalize(
        torch.randn(600, 5, generator=draws) * torch.tensor([4, 2, 1, 1, 0]), dim=1
    )
    whole = Shard(600, 200)
    perturb = LatentNoise(0.5, first, whole, 0)
    rows, _ = next(whole.batches(0, "order"))
    noisy = perturb(first[rows], rows, 7)
    assert torch.allclose(noisy.norm(dim=1), torch.ones(200), atol=1e-5)
    assert not torch.equal(noisy, perturb(first[rows], rows, 8))
    added = noisy / (noisy * first[rows]).sum(dim=1, keepdim=True) - first[rows]  # across the latent
    assert 0.3 < added.square().sum(dim=1).mean().sqrt() < 0.6
    assert added[:, 4].abs().max() < 1e-6 and added[:, 0].std() > 1.15 * added[:, 2].std()
    assert torch.equal(LatentNoise(0, first, whole, 0)(first[rows], rows, 7), first[rows])
    parts = []
    for rank in range(2):
        half = Shard(600, 200, rank, 2)
        of_rank = LatentNoise(0.5, first, whole, 0)  # the spread is that of all ranks' latents
        of_rank.shard = half
        own, _ = next(half.batches(0, "order"))
        parts.append(of_rank(first[own + half.start], own, 7))
    assert torch.equal(torch.cat(parts), noisy)


def test_a_thread_ahead_keeps_the_order_and_passes_errors_on():
    started = []

    def half(item: int) -> float:
        started.append(item)
        return 10 / item

    found = one_ahead(half, [1, 2, 5, 0])
    assert [next(found) for _ in range(3)] == [10, 5, 2]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert started == [1, 2, 5, 0]


def test_images_reach_the_network_channels_last(shapes: np.ndarray, run: Execution):
    batch = to_float(upload(shapes[:5], run))
    assert batch.shape == (5, 3, 16, 16) and batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal((batch[2, 1] * 255).round().byte(), torch.from_numpy(shapes[2, :, :, 1].copy()))


@pytest.mark.parametrize("decoder", [{"width": 8}, {"kind": "infogan", "width": 8}])
def test_glo_learns_to_reconstruct(decoder: dict, shapes: np.ndarray, run: Execution):
    images = shapes if "kind" not in decoder else np.pad(shapes, ((0, 0), (6, 6), (6, 6), (0, 0)))
    fast = {"epochs": 120, "decoder_lr": 0.01, "latent_lr": 0.03, "ema": 0.9, "loss": {"kind": "l1"}}
    result = train_glo(images, Glo(**(TINY | fast | {"decoder": decoder})), 0, run)
    losses = [entry["loss"] for entry in result.history]
    ignorance = np.abs(images / 255 - np.median(images / 255, axis=0)).mean()  # the best one image for all
    assert losses[-1] < 0.8 * ignorance < losses[0]
    assert torch.allclose(result.latents.norm(dim=1), torch.ones(48), atol=1e-5)
    with torch.no_grad():
        error = (result.decoder(result.latents) - to_float(upload(images, run))).abs().mean()
    assert error < 0.8 * ignorance  # the averaged decoder reconstructs, not only the last one


def test_a_decoder_that_draws_one_picture_for_all_is_noticed(
    shapes: np.ndarray, run: Execution, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("glann.glo.train.SETTLED_AFTER", 9)
    monkeypatch.setattr("glann.glo.train.LEAST_VARIETY", 0.5)
    # A decoder that is frozen draws hardly more than grey for ever.
    frozen = [ParameterGroup(match="*", lr_multiplier=0)]
    with pytest.raises(GlannError, match=r"glo: epoch 3: the loss will not fall: all latents decode to one"):
        train_glo(shapes, Glo(**TINY, parameter_groups=frozen), 0, run)
    constant = np.full_like(shapes, 7)  # here one picture is right
    train_glo(constant, Glo(**TINY, parameter_groups=frozen), 0, run)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(shapes: np.ndarray, run: Execution):
    def train(seed: int) -> torch.Tensor:
        return train_glo(shapes, Glo(**TINY), seed, run).latents

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))


def test_the_average_follows_within_a_short_run_and_lags_in_a_long_one():
    module = nn.Linear(1, 1)
    average = moving_average(module, 0.99)
    values = []
    for i in range(2000):
        nn.init.constant_(module.weight, float(i))
        average.update_parameters(module)
        values.append(average.module.weight.item())
    assert values[0] == 0 and 20 < values[29] < 29  # with 0.99 from the start it would be at 4
    assert values[-1] == pytest.approx(1999 - 99, abs=1)  # the lag of an average over 1 / (1 - 0.99) steps


def test_state_of_networks_and_optimisers_survives_being_flattened():
    def make() -> tuple[nn.Module, torch.optim.Adam]:
        module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        return module, adam(module, 0.1, [])

    module, optimizer = make()
    average = moving_average(module, 0.9)
    for _ in range(3):
        module(torch.randn(4, 2)).square().sum().backward()
        step(optimizer, 0.1)
        average.update_parameters(module)
    state = flatten_state({"module": module, "optimizer": optimizer, "average": average})
    other, other_optimizer = make()
    other_average = moving_average(other, 0.9)
    others = {"module": other, "optimizer": other_optimizer, "average": other_average}
    restore_state(state, others)
    again = flatten_state(others)
    assert state.keys() == again.keys() and all(torch.equal(state[key], again[key]) for key in state)


def course_of(
    stage: str,
    epochs: int,
    checkpoints: Checkpoints | None = None,
    network: nn.Module | None = None,
    n: int = 4,
) -> Course:
    """The course of a run over n rows in batches of 4."""
    parts = {"network": network or nn.Linear(2, 2)}
    return Course(stage, "rows", parts, Shard(n, 4), epochs, "constant", checkpoints, "do something")


def test_an_infinite_loss_names_the_place_and_the_checkpoint(
    shapes: np.ndarray, run: Execution, tmp_path: Path
):
    config = Glo(**TINY).model_copy(update={"decoder_lr": 1e38})  # more than the schema would allow
    with pytest.raises(GlannError, match=r"glo: epoch \d+, step \d+: the loss is nan; no checkpoint was"):
        train_glo(shapes, config, 0, run, Checkpoints(tmp_path, "glo", "test", minutes=60))
    checkpoints = Checkpoints(tmp_path, "imle", "test", minutes=0)
    message = f"step 2: the loss is inf; the last good checkpoint is {checkpoints.path}; do something"
    with pytest.raises(GlannError, match=message), course_of("imle", 3, checkpoints, n=8) as course:
        course.step(torch.ones(()), 4)
        course.step(torch.tensor(math.inf), 4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_advised_for_a_loss_that_goes_wrong_fits_the_run(precision: str, shapes: np.ndarray):
    config = Glo(**TINY).model_copy(update={"decoder_lr": 1e38})
    with pytest.raises(GlannError, match=r"lower glo\.latent_lr and glo\.decoder_lr, clip") as error:
        train_glo(shapes, config, 0, execution(Compute(device="cpu", precision=precision, threads=1)))
    assert ("compute.precision" in str(error.value)) == (precision == "bfloat16")


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


def test_a_loss_that_jumps_and_comes_back_goes_on():
    # Near zero a loss may well be ten times its best; after a jump it may take an epoch to come back.
    with course_of("glo", 9) as course:
        for loss in (2.0, 0.001, 0.02, 0.03, 0.02, 0.05, 30.0, 40.0, 0.01):
            course.step(torch.tensor(loss), 4)
            course.end_epoch()
    assert [entry["epoch"] for entry in course.history] == [*range(1, 10)]


def test_the_first_latents_do_not_depend_on_the_number_of_cores(shapes: np.ndarray):
    from threadpoolctl import threadpool_limits

    found = []
    for cores in (1, 2):
        with threadpool_limits(cores):
            found.append(initial_latents(shapes, Glo(latent_dim=8), 0, 0, 48))
    assert torch.equal(*found)


def test_a_gpu_that_is_not_there_is_said_in_one_line():
    with pytest.raises(GlannError, match=r"compute\.device: cuda:99, but torch sees (no GPU|cuda:0)"):
        execution(Compute(device="cuda:99"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 16, 16, 3), np.float32), "uint8"),
        (np.zeros((4, 16, 16), np.uint8), "uint8"),
        (np.zeros((1, 16, 16, 3), np.uint8), "two or more images"),
        (np.zeros((4, 24, 24, 3), np.uint8), "residual makes squares of 16, 32"),
        (np.zeros((4, 16, 32, 3), np.uint8), "the images are 32 x 16"),
    ],
)
def test_images_that_cannot_be_trained_on_are_one_line(images: np.ndarray, message: str, run: Execution):
    with pytest.raises(GlannError, match=message):
        train_glo(images, Glo(**TINY), 0, run)


@pytest.mark.parametrize("kind", ["residual", "infogan"])
def test_two_equal_constant_images_are_trained_on(kind: str, run: Execution):
    config = Glo(**(TINY | {"decoder": {"kind": kind, "width": 8}, "batch_size": 1}))
    result = train_glo(np.full((2, 32, 32, 1), 128, np.uint8), config, 0, run)
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("kind", ["l1", "laplacian", "perceptual"])
def test_where_memory_is_short_only_what_lowers_it_is_advised(kind: str, run: Execution):
    images = np.broadcast_to(np.zeros((1, 64, 64, 3), np.uint8), (10_000_000, 64, 64, 3))
    config = Glo(batch_size=5_000_000, loss={"kind": kind})
    with pytest.raises(GlannError, match=r"lower glo\.batch_size \(5000000\), glo\.decoder\.width") as error:
        train_glo(images, config, 0, run)
    assert ("glo.loss.crop" in str(error.value)) == (kind == "perceptual")
