"""A mapping that is fitted to classes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import SMALL, Killed, KilledOnce, clusters

from glann.errors import GlannError
from glann.imle.calibration import moments
from glann.imle.fit import fit_imle
from glann.imle.matching import Matching, groups_of, map_candidates, noise_blocks
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.training.checkpoints import Checkpoints
from glann.training.shards import Shard

GROUPS = torch.arange(600) % 5  # of `clusters`, five places on the circle


def drawn(mapping: MappingNetwork, label: int, count: int = 500) -> torch.Tensor:
    noise = torch.randn(count, mapping.architecture.noise_dim, generator=stream(label, "noise"))
    with torch.no_grad():
        return mapping(noise, torch.full((count,), label))


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_samples_of_a_class_lie_where_its_latents_do(kind: str, cpu: Execution):
    config = SMALL.model_copy(update={"mapping": Mapping(kind=kind, width=64, depth=2)})
    latents = clusters()
    mapping = fit_imle(latents, config, 0, cpu, labels=GROUPS, class_names=list("abcde")).mapping
    assert (mapping.architecture.classes, mapping.architecture.class_counts) == (list("abcde"), [120] * 5)
    for label in range(5):
        middle = F.normalize(latents[label == GROUPS].mean(dim=0), dim=0)
        near = drawn(mapping, label) @ middle  # classes are 72 degrees apart
        assert (near > 0.9).float().mean() > 0.9  # by chance .14; trained for a second


def test_latents_are_matched_with_candidates_of_their_class_only(cpu: Execution):
    latents = torch.randn(90, 3, generator=stream(0, "latents"))  # classes do not differ at all
    labels = torch.tensor([0] * 60 + [1] * 29 + [2])
    groups = groups_of(SMALL, 90, labels)
    assert [group.count for group in groups] == [120, 58, 2]
    architecture = MappingArchitecture(
        config=SMALL.mapping, noise_dim=2, latent_dim=3, classes=list("abc"), class_counts=[60, 29, 1]
    )
    mapping = MappingNetwork(architecture)
    initialize(mapping, stream(0, "mapping"))
    matching = Matching(latents, Shard(90, 16), groups, SMALL, 0, cpu)
    matching.renew(mapping, epoch=0)
    distances = torch.zeros(90)
    for group in groups:
        (noise,) = noise_blocks(group, 2, 0, 0, cpu)
        apart = torch.cdist(latents[group.rows], map_candidates(mapping, noise, cpu, group.label))
        assert torch.equal(matching.noise[group.rows], noise[apart.argmin(dim=1)])
        distances[group.rows] = apart.min(dim=1).values.square()
    assert matching.distance == pytest.approx(float(distances.mean()), rel=1e-4)


def test_each_class_has_the_moments_of_its_latents(cpu: Execution):
    draws = stream(0, "latents")
    wide = torch.randn(2000, 3, generator=draws) * torch.tensor([3.0, 1.0, 0.3]) + 5
    narrow = torch.randn(1000, 3, generator=draws) * torch.tensor([0.3, 0.2, 0.5]) - 5
    labels = torch.tensor([0] * 2000 + [1] * 1000)
    config = SMALL.model_copy(update={"epochs": 3})
    mapping = fit_imle(torch.cat([wide, narrow]), config, 0, cpu, labels=labels).mapping
    for label, latents in ((0, wide), (1, narrow)):
        (mean, covariance), (wanted, spread) = moments([drawn(mapping, label, 20_000)]), moments([latents])
        assert (mean - wanted).abs().max() < 0.1 * spread.diagonal().sqrt().max()
        assert torch.allclose(covariance.diagonal().sqrt(), spread.diagonal().sqrt(), rtol=0.1)


@pytest.mark.parametrize("few", [1, 2, 8])
def test_a_class_of_few_latents_on_the_sphere_stays_with_them(few: int, cpu: Execution):
    draws = stream(0, "latents")
    middle = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    latents = torch.cat(
        [torch.randn(300, 6, generator=draws), middle + 0.1 * torch.randn(few, 6, generator=draws)]
    )
    labels = torch.tensor([0] * 300 + [1] * few)
    mapping = fit_imle(F.normalize(latents, dim=1), SMALL, 0, cpu, labels=labels).mapping
    near = drawn(mapping, 1) @ middle[0]
    # It is trained for a second only. Samples of all latents have a mean of 0.
    assert near.quantile(0.2) > 0.4 and near.mean() > 0.7


def test_a_class_of_one_latent_is_drawn_around_it(cpu: Execution):
    latents = torch.cat([torch.randn(200, 3, generator=stream(0, "latents")), torch.full((1, 3), 20.0)])
    labels = torch.tensor([0] * 200 + [1])
    config = SMALL.model_copy(update={"residuals": 0.5})
    mapping = fit_imle(latents, config, 0, cpu, labels=labels).mapping
    assert (drawn(mapping, 1).mean(dim=0) - 20).abs().max() < 1
    assert (drawn(mapping, 0).mean(dim=0)).abs().max() < 1


def test_residuals_come_from_the_same_class(cpu: Execution):
    architecture = MappingArchitecture(
        config=SMALL.mapping, noise_dim=2, latent_dim=2, classes=list("abc"), class_counts=[1, 1, 1]
    )
    mapping = MappingNetwork(architecture)
    anchors = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    mapping.set_residuals(anchors, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([0, 1]))
    unit = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.1, 0.0]])
    found = mapping.nearest_residual(unit, torch.tensor([0, 1, 2]))  # c has no anchor
    assert found.tolist() == [[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]


def test_a_conditional_mapping_comes_back_from_its_file_and_is_a_start(cpu: Execution, tmp_path: Path):
    config = SMALL.model_copy(update={"epochs": 2, "residuals": 0.5, "conditional": True})
    mapping = fit_imle(clusters(), config, 0, cpu, labels=GROUPS).mapping
    mapping.save(tmp_path / "mapping.safetensors")
    assert torch.equal(drawn(MappingNetwork.load(tmp_path / "mapping.safetensors"), 3), drawn(mapping, 3))
    start = config.model_copy(update={"start_from": str(tmp_path / "mapping.safetensors")})
    fit_imle(clusters(), start, 0, cpu, labels=GROUPS)
    with pytest.raises(GlannError, match=r"has classes 0, 1, 2, 3, 4 \(5\), not a, b, c, d, e \(5\); set"):
        fit_imle(clusters(), start, 0, cpu, labels=GROUPS, class_names=list("abcde"))
    with pytest.raises(GlannError, match=r"has imle\.conditional True, not False"):
        fit_imle(clusters(), start.model_copy(update={"conditional": False}), 0, cpu)


def test_a_conditional_fit_resumes_to_the_same_bytes(cpu: Execution, tmp_path: Path):
    config = SMALL.model_copy(update={"epochs": 3, "refresh": 2, "residuals": 0.3})
    expected = fit_imle(clusters(), config, 0, cpu, labels=GROUPS).mapping.state_dict()
    with pytest.raises(Killed):
        fit_imle(clusters(), config, 0, cpu, KilledOnce(tmp_path, "imle", "run", 0), labels=GROUPS)
    found = fit_imle(clusters(), config, 0, cpu, Checkpoints(tmp_path, "imle", "run", 60), labels=GROUPS)
    assert all(torch.equal(value, expected[name]) for name, value in found.mapping.state_dict().items())


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        (GROUPS[:-1], None, r"labels: expected int64 \[600\], one per latent, found int64 \[599\]"),
        (GROUPS.float(), None, r"labels: expected int64 \[600\], one per latent, found float32"),
        (GROUPS - 1, None, "labels: use numbers from 0 to"),
        (GROUPS * 2, None, "labels: class 1 has no latents"),
        (GROUPS, list("abc"), "class_names: 3 different names of 5 classes"),
        (GROUPS, list("aabcd"), "class_names: 4 different names of 5 classes"),
        (GROUPS, list("abcdef"), "labels: class 5 has no latents"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(labels, names, said, cpu: Execution, no_matching: None):
    with pytest.raises(GlannError, match=said):
        fit_imle(clusters(), SMALL, 0, cpu, labels=labels, class_names=names)


def test_without_labels_nothing_is_conditional(cpu: Execution, no_matching: None):
    with pytest.raises(GlannError, match=r"imle\.conditional: there are no labels"):
        fit_imle(clusters(), SMALL.model_copy(update={"conditional": True}), 0, cpu)
