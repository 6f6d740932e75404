"""The steps of the rivals against what their papers say, written down in the plainest way."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_peers import SECTIONS, architecture, inputs, section, step_of
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from benchmarks.alternating import gan_decoder, gan_discriminator, gan_gradients, ogan_gradients
from glann.glo.settings import Loss
from glann.peers.step import PeerStep, squared_slope
from glann.peers.vae import VaeStep
from glann.runtime.compute import Execution
from glann.training.batches import Inputs
from glann.training.shards import Shard

INFOGAN = {"kind": "infogan"}  # has batch normalisation
CANCELS = "decoder.network.up.bias"  # in the batch normalisation behind it
ROUNDING = 2e-5  # of the largest gradient of a layer: float32 has 7 digits, and sums have thousands of terms


def images_of(size: int, n: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def taken(step: PeerStep) -> dict[str, Tensor]:
    """Return the gradients of all parameters, and clear them."""
    found = {name: p.grad for name, p in step.networks.named_parameters() if p.grad is not None}
    step.optimizer.zero_grad()
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rounding: float = ROUNDING) -> None:
    """Compare gradients, each with the largest of its layer, all of which must be there and not vanish."""
    assert found.keys() == expected.keys() and found
    for name in expected.keys() - {CANCELS}:
        gradient = expected[name]
        largest = gradient.abs().max().item()
        assert largest > 0, name
        assert (found[name] - gradient).abs().max().item() <= rounding * largest, name


def scale_scores(step: PeerStep, factor: float, shift: float) -> None:
    """Make the judge surer, or sure of one side."""
    out = step.networks["judge"].out
    with torch.no_grad():
        out.weight.mul_(factor)
        out.bias.fill_(shift)


@pytest.mark.parametrize("decoder", [{}, INFOGAN], ids=["residual", "batch norm"])
@pytest.mark.parametrize("number", [0, 1], ids=["penalty", "no penalty"])
@pytest.mark.parametrize(("factor", "shift"), [(1, 0), (1, 30), (1, -30), (1, -58), (200, 0)])
def test_a_single_step_of_a_gan_has_the_gradients_of_the_usual_two(
    decoder: dict, number: int, factor: float, shift: float, cpu: Execution
):
    images = images_of(32 if decoder else 16)
    step = step_of("gan", images, cpu, decoder=decoder, penalty_every=2)
    scale_scores(step, factor, shift)
    x = inputs(step, number) | {"weight": 0.75}
    assert ("penalty" in x) == (number == 0)
    loss = step.gradients(x)
    found = taken(step)
    assert loss.item() == pytest.approx(gan_gradients(step, x).item(), rel=1e-6)
    assert_close(found, taken(step))
    if (factor, shift) != (1, 0):  # scores are as extreme as this says
        assert step.judge(step.draw(x["noise"])).abs().max() > 10


def test_the_usual_two_steps_of_a_gan_lower_the_losses_of_the_paper(cpu: Execution):
    """What the single step is compared with, against cross-entropies, a label at a time."""
    step = step_of("gan", images_of(16), cpu)
    x = inputs(step, 1)
    real, made = step.real(x), step.draw(x["noise"])
    ones, zeros = torch.ones(12, 1), torch.zeros(12, 1)
    cross_entropy = F.binary_cross_entropy_with_logits
    loss = cross_entropy(step.judge(real), ones) + cross_entropy(step.judge(made.detach()), zeros)
    loss.backward()
    expected = taken(step)
    assert gan_discriminator(step, x).item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close(taken(step), expected)
    judge = [*step.networks["judge"].parameters()]
    for p in judge:
        p.requires_grad_(False)
    cross_entropy(step.judge(made), ones).backward()
    expected = taken(step)
    for p in judge:
        p.requires_grad_(True)
    gan_decoder(step, x)
    assert_close(taken(step), expected)


@pytest.mark.parametrize("decoder", [{}, INFOGAN], ids=["residual", "batch norm"])
def test_a_single_step_of_an_o_gan_has_the_gradients_of_three_passes_through_the_judge(
    decoder: dict, cpu: Execution
):
    step = step_of("ogan", images_of(32 if decoder else 16), cpu, decoder=decoder)
    x = inputs(step) | {"weight": 0.75}
    loss = step.gradients(x)
    found = taken(step)
    assert loss.item() == pytest.approx(ogan_gradients(step, x).item(), rel=1e-5)
    assert_close(found, taken(step))
    assert {name.split(".")[0] for name in found} == {"decoder", "judge"}


def test_the_loss_of_an_o_gan_is_that_of_a_sum_by_hand(cpu: Execution, monkeypatch: pytest.MonkeyPatch):
    """White images, drawn ones black: 2 apart in [-1, 1], so the squared distance is 4."""
    step = step_of("ogan", np.full((12, 16, 16, 3), 255, np.uint8), cpu, correlation=0.5)
    x = inputs(step)
    monkeypatch.setattr(step, "draw", lambda noise: 0 * step.decoder(noise))

    def judge(images: Tensor) -> Tensor:
        """Give training images the score 2; drawn ones 5, and their noise as the code."""
        code = x["noise"] - x["noise"].mean(dim=1, keepdim=True)
        return 0 * images.sum() + (2.0 if images.mean() > 0.5 else 3 * code + 5)

    monkeypatch.setattr(step, "judge", lambda images: judge(images).expand(12, 8))
    # gap + gap² / (4 * 4) - correlation * 1, with the gap 2 - 5
    assert step.gradients(x).item() == pytest.approx(-3 + 9 / 16 - 0.5, rel=1e-5)


def test_the_penalty_of_a_gan_comes_every_few_steps_and_counts_as_often(cpu: Execution):
    step = step_of("gan", images_of(16), cpu, penalty=3.0, penalty_every=4)
    weights = [inputs(step, number).get("penalty") for number in range(9)]
    assert weights == [6.0, None, None, None, 6.0, None, None, None, 6.0]


def test_a_squared_slope_is_that_of_a_derivative_by_hand_and_has_one_itself():
    images = torch.rand(3, 1, 2, 2, requires_grad=True)
    c = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    scores = (c[:, None, None, None] * images.square()).flatten(1).sum(dim=1)  # d/dx = 2 c x
    found = squared_slope(scores, images)
    squares = images.detach().square().flatten(1).sum(dim=1)
    assert torch.allclose(found, 4 * c.detach().square() * squares)
    found.sum().backward()
    assert torch.allclose(c.grad, 8 * c.detach() * squares)


def kept_instead_of_stepped(step: PeerStep, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Let the step collect gradients in a list where it would step the critic."""
    kept: list[dict[str, Tensor]] = []
    monkeypatch.setattr(step, "update", lambda _: kept.append(taken(step)))
    return kept


def test_a_wasserstein_gan_has_the_losses_of_the_paper(cpu: Execution, monkeypatch: pytest.MonkeyPatch):
    """Image by image: Gulrajani et al., algorithm 1."""
    step = step_of("wgan_gp", images_of(16), cpu, critic_steps=2, penalty=7.0)
    x = inputs(step)
    kept = kept_instead_of_stepped(step, monkeypatch)
    loss = step.gradients(x)
    of_decoder = taken(step)
    assert len(kept) == 2 and all(name.startswith("decoder.") for name in of_decoder)

    losses = []
    judge = step.networks["judge"]
    for part, gradients in zip((slice(0, 6), slice(6, 12)), kept, strict=True):
        with torch.no_grad():
            made = step.draw(x["noise"][part, :8])
        total = torch.zeros(())
        for real, drawn, number in zip(step.real(x)[part], made, x["noise"][part, 16], strict=True):
            at = 0.5 * (1 + math.erf(number.item() / math.sqrt(2)))  # the share of normal numbers below it
            between = ((1 - at) * real + at * drawn)[None].requires_grad_()
            (slope,) = torch.autograd.grad(judge(between)[0, 0], between, create_graph=True)
            total = total + judge(drawn[None])[0, 0] - judge(real[None])[0, 0] + 7 * (slope.norm() - 1) ** 2
        (total / 6).backward()
        losses.append(total.item() / 6)
        found = {name: g for name, g in gradients.items() if name != "judge.out.bias"}
        expected = taken(step)
        assert expected.pop("judge.out.bias").abs() < 1e-6  # it cancels
        assert_close(found, expected)
    assert loss.item() == pytest.approx(sum(losses) / 2, rel=1e-5)

    (-judge(step.draw(x["noise"][:6, 8:16])).mean()).backward()
    expected = {name: g for name, g in taken(step).items() if name.startswith("decoder.")}
    assert_close(of_decoder, expected)


def test_the_critic_is_stepped_several_times_per_step_of_the_decoder(cpu: Execution):
    step = step_of("wgan_gp", images_of(16), cpu, critic_steps=3)
    step(inputs(step) | {"share": 1.0})
    state = step.optimizer.state
    assert {int(state[p]["step"]) for p in step.networks["judge"].parameters()} == {3}
    assert {int(state[p]["step"]) for p in step.decoder.parameters()} == {1}


def test_an_energy_model_has_the_gradients_of_three_losses(cpu: Execution):
    step = step_of("energy", images_of(16), cpu, entropy=0.7, penalty=0.3)
    x = inputs(step)
    loss = step.gradients(x)
    found = taken(step)

    energy, statistics = step.networks["judge"], step.networks["statistics"]
    real, noise = step.real(x).requires_grad_(), x["noise"]
    others = torch.cat([noise[-1:], noise[:-1]])

    def entropy_bound(images: Tensor) -> Tensor:
        told, other = statistics(images, noise), statistics(images, others)
        cross_entropy = F.binary_cross_entropy_with_logits
        return cross_entropy(told, torch.ones(12, 1)) + cross_entropy(other, torch.zeros(12, 1))

    made = step.draw(noise).detach()
    (slope,) = torch.autograd.grad(energy(real).sum(), real, create_graph=True)
    of_energy = (energy(real) - energy(made)).mean() + 0.3 * slope.flatten(1).norm(dim=1).square().mean()
    of_energy.backward()
    of_statistics = entropy_bound(made)
    of_statistics.backward()
    expected = taken(step)
    made = step.draw(noise)
    (energy(made).mean() + 0.7 * entropy_bound(made)).backward()
    expected |= {name: g for name, g in taken(step).items() if name.startswith("decoder.")}
    for gradients in (found, expected):  # a constant in the energy cancels
        assert gradients.pop("judge.out.bias").abs() < 1e-6
    assert {name.split(".")[0] for name in expected} == {"decoder", "judge", "statistics"}
    assert_close(found, expected)
    assert loss.item() == pytest.approx((of_energy + of_statistics).item(), rel=1e-5)


def test_a_variational_autoencoder_adds_the_weighted_divergence_to_the_loss_of_glo(cpu: Execution):
    step = step_of("vae", images_of(16), cpu, beta=0.3)
    x = inputs(step) | {"weight": 0.75}
    loss = step.gradients(x)
    found = taken(step)

    code = step.networks["judge"](step.real(x))
    posterior = Normal(code[:, :8], (0.5 * code[:, 8:]).exp())
    latents = posterior.mean + posterior.stddev * x["noise"]
    made = step.decoder(latents / latents.norm(dim=1, keepdim=True))
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).mean()  # per number
    expected = (made - step.real(x)).abs().mean() + 0.3 * divergence
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (0.75 * expected).backward()
    assert_close(found, taken(step))


def test_without_a_weight_the_divergence_has_the_one_that_suits_the_loss(cpu: Execution, random_vgg: str):
    images = images_of(32)
    config, shard = section("vae", beta=None), Shard(len(images), len(images))
    perceptual = Loss(kind="perceptual", levels=1, weights=random_vgg)
    for loss, kind, beta in (
        (Loss(kind="laplacian"), "infogan", 0.02),
        (perceptual, "infogan", 30),
        (perceptual, "residual", 3),
    ):
        step = VaeStep("vae", images, architecture(images, kind=kind), config, loss, shard, 0, cpu)
        assert step.beta == beta


@pytest.mark.parametrize(("kind", "size", "deep"), [("infogan", 28, False), ("smooth", 28, True)])
def test_without_a_rate_or_a_weight_they_suit_the_depth_of_the_decoder(
    kind: str, size: int, deep: bool, cpu: Execution
):
    decoder = {"kind": kind}
    rates = {"vae": (0.001, 0.0003)} | dict.fromkeys(("ogan", "energy"), (0.0005, 0.0001))
    for name in SECTIONS:
        step = step_of(name, images_of(size), cpu, decoder=decoder, lr=None)
        assert step.lr == rates.get(name, (0.0005, 0.0002))[deep]
        assert step_of(name, images_of(size), cpu, decoder=decoder, lr=0.7).lr == 0.7
    gan = step_of("gan", images_of(size), cpu, decoder=decoder, penalty=None, penalty_every=4)
    assert inputs(gan)["penalty"] == (20 if deep else 2)  # half of gamma, for four steps
    for name, key, weights in (("ogan", "correlation", (0.1, 0.5)), ("energy", "penalty", (0.1, 10.0))):
        usual, given, other = (
            step_of(name, images_of(size), cpu, decoder=decoder, **{key: value})
            for value in (None, weights[deep], weights[not deep])
        )
        losses = [step.gradients(inputs(step)).item() for step in (usual, given, other)]
        assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", SECTIONS)
def test_all_networks_are_stepped_with_the_decays_that_are_set(name: str, cpu: Execution):
    step = step_of(name, images_of(16), cpu, betas=[0.0, 0.9], parameter_groups=[{"match": "judge.*"}])
    assert [group["betas"] for group in step.optimizer.param_groups] == [(0.0, 0.9)] * 2


def test_an_encoder_whose_variances_overflow_still_has_a_loss(cpu: Execution):
    step = step_of("vae", images_of(16), cpu, beta=1.0)
    with torch.no_grad():
        step.networks["judge"].out.bias[8:] = 200.0
    assert step.gradients(inputs(step)).isfinite()
    assert all(gradient.isfinite().all() for gradient in taken(step).values())


def test_the_divergence_of_a_known_posterior_is_that_of_the_closed_form(cpu: Execution):
    """All images get one posterior: mean 3 and variance e^-1, or the prior itself."""
    losses = []
    for mean, log_variance in ((3.0, -1.0), (0.0, 0.0)):
        step = step_of("vae", images_of(16), cpu, beta=1000.0)
        out = step.networks["judge"].out
        with torch.no_grad():
            out.weight.zero_()
            out.bias[:8], out.bias[8:] = mean, log_variance
        losses.append(step.gradients(inputs(step)).item())
    # (9 + 1 / e - 1 + 1) / 2 numbers of 1000; the distance of pixels is less than 1.
    assert losses[0] == pytest.approx(1000 * (9 + math.exp(-1)) / 2, abs=1)
    assert losses[1] < 1


def shares(name: str, images: np.ndarray, ranks: int, on: Execution) -> list[tuple[PeerStep, Inputs]]:
    """What each process computes with, and what it reads for the same batch."""
    steps = [step_of(name, images, on, Shard(len(images), 16, rank, ranks)) for rank in range(ranks)]
    return [(step, inputs(step)) for step in steps]


@pytest.mark.parametrize("name", SECTIONS)
def test_images_and_noise_of_a_batch_do_not_depend_on_the_number_of_processes(name: str, cpu: Execution):
    images = images_of(16, n=46)  # batches of 16 and 15, and shares of several sizes
    ((_, whole),) = shares(name, images, 1, cpu)
    parts = shares(name, images, 3, cpu)
    assert len({len(x["rows"]) for _, x in parts}) > 1
    for key in ("images", "noise"):
        assert torch.equal(torch.cat([x[key] for _, x in parts]), whole[key])
    rows = torch.cat([x["rows"] + step.shard.start for step, x in parts])
    assert torch.equal(rows, whole["rows"]) and torch.equal(torch.from_numpy(images[rows]), whole["images"])


@pytest.mark.parametrize("name", ["vae", "gan", "ogan"])
def test_the_mean_gradient_of_three_processes_is_that_of_one(name: str, cpu: Execution):
    """For the others it is up to chance: they compare images with other noise, or cut batches into parts."""
    images = images_of(16, n=46)
    ((step, x),) = shares(name, images, 1, cpu)
    step.gradients(x)
    expected = taken(step)
    total = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
    for part, own in shares(name, images, 3, cpu):
        part.gradients(own)
        for key, gradient in taken(part).items():
            total[key] += gradient / 3
    assert_close(total, expected)


def test_noise_differs_between_images_steps_seeds_and_rivals(cpu: Execution):
    images = images_of(16)
    step = step_of("gan", images, cpu)
    other = step_of("gan", images, cpu)
    other.seed = 1
    drawn = [inputs(step, 0), inputs(step, 1), inputs(other, 0), inputs(step_of("ogan", images, cpu), 0)]
    rows = torch.cat([x["noise"] for x in drawn])
    assert len(rows.unique(dim=0)) == 4 * 12
    assert torch.equal(inputs(step, 1)["noise"], drawn[1]["noise"])
