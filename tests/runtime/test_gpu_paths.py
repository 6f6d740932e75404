"""Everything but training on a simulated GPU, and what a machine with GPUs is asked for."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from simulated_gpu import GpuTensor, SimulatedGpu
from small import small_generator
from training_project import ROOT, project, run_at_once, start

from glann.errors import GlannError
from glann.evaluate.features import feature_network
from glann.neighbors.search import nearest
from glann.projection.projector import Projector
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
ON_GPU = Compute(device="cuda", precision="float32", threads=1)


@pytest.mark.parametrize("classes", [None, {"cat": 3, "dog": 1}])
def test_samples_of_a_gpu_are_those_of_a_cpu(classes: dict[str, int] | None, cpu: Execution):
    expected = small_generator(cpu, classes=classes)
    with SimulatedGpu() as gpu:
        generator = small_generator(execution(ON_GPU), classes=classes)
        assert np.array_equal(generator.sample(70, 3, truncation=0.8), expected.sample(70, 3, truncation=0.8))
        assert np.array_equal(generator.interpolate(3, 5, seed=1), expected.interpolate(3, 5, seed=1))
    assert gpu.operations


def test_features_and_projections_of_a_gpu_are_those_of_a_cpu(cpu: Execution, random_vgg: str):
    images = small_generator(cpu).sample(5, 0)
    origin = {"loss": "perceptual", "levels": 2}
    expected = Projector(small_generator(cpu, **origin), weights=random_vgg).project(images)
    features = feature_network("vgg", random_vgg, images, cpu)(images)
    with SimulatedGpu():
        on = execution(ON_GPU)
        assert torch.equal(feature_network("vgg", random_vgg, images, on)(images), features)
        found = Projector(small_generator(on, **origin), weights=random_vgg).project(images)
    assert np.allclose(found.distances, expected.distances, rtol=1e-3)


def test_tensors_of_two_devices_are_refused_and_waits_are_counted():
    """The simulated GPU refuses and counts what a real one does."""
    with SimulatedGpu() as gpu:
        execution(ON_GPU)
        rows = torch.arange(4.0).to("cuda")
        with pytest.raises(RuntimeError, match="on the CPU"):
            rows + torch.ones(4)
        assert (rows + torch.ones(())).is_cuda  # torch allows this
        gpu.waits.clear()
        rows[torch.tensor([1, 2])]
        rows.sum().item()
        rows.cpu()
        rows[rows > 1]
        torch.tensor([1.0], device="cuda")
        torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        assert sum(gpu.waits.values()) == 5 and isinstance(rows, GpuTensor)
        gpu.waits.clear()
        torch.ones(2).to("cuda", non_blocking=True)  # not pinned
        assert sum(gpu.waits.values()) == 1


def test_without_gpu_support_in_faiss_the_cpu_searches_for_a_gpu():
    queries, database = torch.randn(20, 4), torch.randn(100, 4)
    for index in ("Flat", "IVF4,Flat;nprobe=4", "HNSW8", "SQ8"):
        with SimulatedGpu():
            found = nearest(queries.to("cuda"), database.to("cuda"), 2, index)
            assert all(part.is_cuda for part in found)
        expected = nearest(queries, database, 2, index)
        assert all(torch.equal(ours.held, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_one_gpu_for_all_processes_of_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with SimulatedGpu(), pytest.raises(GlannError, match="cuda:0 is one GPU, but torchrun started 2"):
        execution(Compute(device="cuda:0"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with SimulatedGpu():
        assert execution(Compute(device="cuda:0")).device == torch.device("cuda:0")


def test_two_processes_on_gpus_reach_the_end_of_both_stages(shapes: np.ndarray, tmp_path: Path):
    """Each has a simulated GPU, and a group with the backends that a machine with GPUs chooses."""
    alone = project(tmp_path / "alone", shapes)
    two = project(tmp_path / "two", shapes, {"compute": {"device": "cuda"}})
    (two / "sitecustomize.py").write_text("import simulated_gpu\nsimulated_gpu.everywhere()\n")
    path = os.pathsep.join(map(str, (two, ROOT, ROOT / "tests")))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    for stage in ("glo", "imle"):
        run_at_once(alone, stage)
        process = start(two, *torchrun, f"stages.{stage}", path=path)
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
    found, expected = (np.load(folder / "data/glo/latents.npy") for folder in (two, alone))
    assert np.abs(found - expected).max() < 1e-3
    assert (two / "data/imle/generator.safetensors").is_file()
