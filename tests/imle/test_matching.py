"""Candidates in blocks, and the nearest of them."""

from pathlib import Path

import pytest
import torch
from small import SMALL, Killed, KilledOnce, clusters

from glann.imle.fit import fit_imle
from glann.imle.matching import Matching, groups_of, map_candidates, noise_blocks
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.training.checkpoints import Checkpoints
from glann.training.shards import Shard


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """1200 candidates come in blocks of 500, 500 and 200."""
    monkeypatch.setattr("glann.imle.matching.CANDIDATES_AT_ONCE", 500)


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat;nprobe=4"])
def test_each_latent_gets_the_noise_of_its_nearest_candidate_in_any_block(
    index: str, small_blocks: None, cpu: Execution
):
    config = SMALL.model_copy(update={"index": index})
    latents = clusters()
    mapping = MappingNetwork(MappingArchitecture(config=config.mapping, noise_dim=2, latent_dim=2))
    initialize(mapping, stream(0, "mapping"))
    groups = groups_of(config, 600, None)
    matching = Matching(latents, Shard(600, 128), groups, config, seed=5, execution=cpu)
    matching.renew(mapping, epoch=3)

    blocks = [*noise_blocks(groups[0], 2, 5, 3, cpu)]
    assert [len(block) for block in blocks] == [500, 500, 200]
    noise = torch.cat(blocks)
    apart = torch.cdist(latents, map_candidates(mapping, noise, cpu))
    nearest = apart.min(dim=1)
    assert len({int(row) // 500 for row in nearest.indices}) == 3  # some are found in each block
    assert torch.equal(matching.noise, noise[nearest.indices])
    assert matching.distance == pytest.approx(nearest.values.square().mean().item(), rel=1e-4)


def test_a_run_with_several_blocks_resumes_to_the_same_bytes(
    small_blocks: None, cpu: Execution, tmp_path: Path
):
    config = SMALL.model_copy(update={"epochs": 4, "refresh": 2})
    expected = fit_imle(clusters(), config, 0, cpu).mapping.state_dict()
    with pytest.raises(Killed):
        fit_imle(clusters(), config, 0, cpu, KilledOnce(tmp_path, "imle", "a run", minutes=0))
    found = fit_imle(clusters(), config, 0, cpu, Checkpoints(tmp_path, "imle", "a run", minutes=60))
    assert all(torch.equal(value, expected[name]) for name, value in found.mapping.state_dict().items())


def test_candidates_are_searched_again_only_every_refresh_epochs(
    cpu: Execution, monkeypatch: pytest.MonkeyPatch
):
    searched = []
    renew = Matching.renew

    def noted(matching: Matching, mapping: MappingNetwork, epoch: int) -> None:
        searched.append(epoch)
        renew(matching, mapping, epoch)

    monkeypatch.setattr(Matching, "renew", noted)
    fit_imle(clusters(), SMALL.model_copy(update={"epochs": 5, "refresh": 2}), 0, cpu)
    assert searched == [0, 2, 4]
