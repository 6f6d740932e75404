import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import SMALL, clusters

from glann.errors import GlannError
from glann.imle.fit import fit_imle
from glann.imle.step import regression_loss
from glann.neighbors.search import nearest
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.generator import save_generator
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.runtime.compute import Execution, execution
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute


def test_an_index_that_does_not_suit_the_latents_is_refused_before_anything_is_drawn(
    cpu: Execution, no_matching: None
):
    for index, said in {
        "IVF1201,Flat": "1201 lists, but there are only 1200 candidates",
        "PQ3x4": "it has 2 numbers; choose a number that divides 2",
        "IVF2,PQ3": "it has 2 numbers; choose a number that divides 2",
        "PQ2x8": "256 codes a part, but there are only 200 candidates",
    }.items():
        latents = clusters(100 if "x8" in index else 600)
        with pytest.raises(GlannError, match=rf"^imle\.index: .*{said}"):
            fit_imle(latents, SMALL.model_copy(update={"index": index}), 0, cpu)


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
def test_every_cluster_is_reached(kind: str, cpu: Execution):
    config = SMALL.model_copy(update={"mapping": SMALL.mapping.model_copy(update={"kind": kind})})
    latents = clusters()
    result = fit_imle(latents, config, 0, cpu)
    with torch.no_grad():
        samples = result.mapping(torch.randn(2000, 2, generator=stream(1, "noise")))
    _, rows = nearest(samples, latents)
    counts = torch.bincount(rows[:, 0] % 5, minlength=5) / 2000
    # The nearest candidate may serve many latents, so the share of a group varies about 0.2; none is dropped.
    assert counts.min() > 0.03
    losses = [entry["loss"] for entry in result.history]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


@pytest.mark.parametrize("scale", [1e20, 1e-24])
def test_latents_whose_squares_float32_cannot_hold_are_refused(scale: float, cpu: Execution):
    with pytest.raises(GlannError, match=r"latents: the largest number is .*; scale them to about 1 first"):
        fit_imle(scale * clusters(), SMALL, 0, cpu)


def test_latents_of_any_norm_are_fitted(cpu: Execution):
    cloud = 100 + 5 * torch.randn(500, 3, generator=stream(0, "cloud"))
    mapping = fit_imle(cloud, SMALL, 0, cpu).mapping
    with torch.no_grad():
        samples = mapping(torch.randn(2000, 2, generator=stream(1, "noise")))
    assert (samples.mean(dim=0) - 100).abs().max() < 3  # the cloud's spread is 5
    assert 2.5 < samples.std(dim=0).mean() < 8  # around the cloud's 5, from a mapping trained for a second


def test_latents_of_more_numbers_than_memory_can_correct_are_refused_before_training(
    cpu: Execution, no_matching: None
):
    with pytest.raises(GlannError, match=r"imle: needs about \d+\.\d GiB .*lower glo\.latent_dim \(200000\)"):
        fit_imle(torch.ones(2, 200_000), SMALL, 0, cpu)


def test_one_latent_or_a_nan_among_them_is_refused(cpu: Execution):
    for latents in (torch.ones(1, 4), F.pad(torch.ones(5, 3), (0, 1), value=math.nan)):
        with pytest.raises(GlannError, match="2 or more rows of finite numbers"):
            fit_imle(latents, SMALL, 0, cpu)


def test_it_goes_on_from_an_earlier_mapping_or_generator(tmp_path, cpu: Execution):
    latents = clusters()
    before = fit_imle(latents, SMALL, 0, cpu)
    before.mapping.save(tmp_path / "mapping.safetensors")
    architecture = DecoderArchitecture(config=Decoder(width=4), latent_dim=2, size=16, channels=1)
    save_generator(tmp_path / "generator.safetensors", before.mapping, DecoderNetwork(architecture))
    few = {"epochs": 1, "lr": 1e-12}
    from_scratch = fit_imle(latents, SMALL.model_copy(update=few), 0, cpu)
    for name in ("mapping.safetensors", "generator.safetensors"):
        start = {"start_from": str(tmp_path / name), **few}
        after = fit_imle(latents, SMALL.model_copy(update=start), 1, cpu)
        assert after.history[0]["loss"] < 1.5 * before.history[-1]["loss"]
        assert after.history[0]["loss"] < 0.7 * from_scratch.history[0]["loss"]
        noise = torch.randn(500, 2, generator=stream(1, "noise"))
        with torch.no_grad():
            difference = after.mapping.network(noise) - before.mapping.network(noise)
        assert difference.abs().max() < 1e-4


def test_a_mapping_of_another_size_is_no_start(tmp_path, cpu: Execution):
    mapping = MappingNetwork(MappingArchitecture(config=SMALL.mapping, noise_dim=3, latent_dim=2))
    mapping.save(tmp_path / "other.safetensors")
    start = SMALL.model_copy(update={"start_from": str(tmp_path / "other.safetensors")})
    with pytest.raises(GlannError, match=r"^imle\.start_from: .*other\.saf.* has imle\.noise_dim 3, not 2;"):
        fit_imle(clusters(), start, 0, cpu)
    with pytest.raises(GlannError, match=r"has imle\.noise_dim 3, not 2, glo\.latent_dim 2, not 5; set"):
        fit_imle(torch.randn(50, 5), start, 0, cpu)
