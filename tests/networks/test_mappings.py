"""Mappings: noise to latents."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import SMALL, clusters

from glann.imle.calibration import fit_range
from glann.imle.fit import fit_imle
from glann.networks.layers import initialize
from glann.networks.mappings.network import MappingArchitecture, MappingNetwork
from glann.networks.mappings.settings import Mapping
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream


def test_a_mapping_comes_back_from_its_file(cpu: Execution, tmp_path: Path):
    mapping = fit_imle(clusters(), SMALL.model_copy(update={"epochs": 1}), 0, cpu).mapping
    mapping.save(tmp_path / "mapping.safetensors")
    noise = torch.randn(5, 2)
    assert torch.equal(MappingNetwork.load(tmp_path / "mapping.safetensors")(noise), mapping(noise))


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_mappings_reach_the_sphere_or_the_cloud_the_latents_lie_on(kind: str):
    architecture = MappingArchitecture(
        config=Mapping(kind=kind, width=16, depth=2), noise_dim=4, latent_dim=6
    )
    mapping = MappingNetwork(architecture)
    initialize(mapping, stream(0, "test"))
    sphere = 3 * F.normalize(torch.randn(500, 6), dim=1)
    fit_range(mapping, sphere)
    assert torch.allclose(mapping(torch.randn(20, 4)).norm(dim=1), torch.tensor(3.0), atol=1e-4)
    cloud = 100 + 7 * torch.randn(5000, 6)
    fit_range(mapping, cloud)
    unit = mapping.to_unit(cloud)
    assert unit.mean().abs() < 0.01 and (unit.std() - 1).abs() < 0.01
    noise = torch.randn(20, 4)
    mapping.eval()
    assert torch.allclose(mapping.to_unit(mapping(noise)), mapping.unit(noise), atol=1e-3)
