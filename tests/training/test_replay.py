"""Both trainings on a simulated GPU, where their steps are recorded and replayed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simulated_gpu import SimulatedGpu, held
from small import SMALL, Killed, KilledOnce, clusters

from glann.glo.settings import Glo, Loss
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.networks.decoders.settings import Decoder
from glann.networks.mappings.settings import Mapping
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute
from glann.training import optimization
from glann.training.batches import Inputs
from glann.training.checkpoints import Checkpoints
from glann.training.course import READ_EVERY
from glann.training.replay import WARM_UP, Replay
from glann.training.settings import ParameterGroup

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
RECORDED, NOT_RECORDED = 20, 700  # most operations that a step starts


def gpu_execution(**keys: Any) -> Execution:
    return execution(Compute(device="cuda", precision="float32", threads=1, **keys))


def images_of(size: int, n: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def glo(images: np.ndarray, on: Execution, checkpoints: Checkpoints | None = None, **keys: Any) -> list:
    keys = {"decoder": Decoder(width=8), "latent_dim": 8, "batch_size": 8, "epochs": 2, **keys}
    result = train_glo(images, Glo(**keys), 0, on, checkpoints)
    return [result.latents, *result.decoder.state_dict().values()]


def imle(latents: torch.Tensor, on: Execution, checkpoints: Checkpoints | None = None, **keys: Any) -> list:
    labels = keys.pop("labels", None)
    result = fit_imle(latents, SMALL.model_copy(update=keys), 0, on, checkpoints, labels=labels)
    return [*result.mapping.state_dict().values()]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Compare what a run on the simulated GPU returned with what one on the CPU did, bit by bit."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(held(ours), held(theirs))


GLO = {
    "infogan, laplacian": (32, {"decoder": Decoder(kind="infogan", width=8), "loss": Loss(kind="laplacian")}),
    "dcgan, l1": (64, {"decoder": Decoder(kind="dcgan", width=4), "loss": Loss(kind="l1")}),
    "residual, perceptual": (16, {"loss": {"levels": 3, "coarse": 0.5, "texture": 2.0}}),
    "smooth, perceptual": (16, {"decoder": Decoder(kind="smooth", width=8), "loss": {"levels": 2}}),
    "windows": (32, {"loss": {"levels": 2, "crop": 16, "texture": 1.0, "cache_gib": 0.0}}),
    "two scales": (128, {"decoder": Decoder(width=4), "loss": {"levels": 1}, "batch_size": 4, "epochs": 1}),
    "noise": (16, {"latent_noise": 0.5, "loss": Loss(kind="l1")}),
    "clip_norm": (16, {"parameter_groups": [ParameterGroup(match="*", gradient="clip_norm", limit=0.01)]}),
    "clip_value": (16, {"parameter_groups": [ParameterGroup(match="*", gradient="clip_value", limit=1e-4)]}),
    "normalize": (
        16,
        {"parameter_groups": [ParameterGroup(match="*weight", gradient="normalize", lr_multiplier=0.5)]},
    ),
}


@pytest.mark.parametrize("case", GLO)
@pytest.mark.parametrize("recorded", [True, False])
def test_glo_on_a_gpu_is_glo_on_a_cpu(case: str, recorded: bool, random_vgg: str, cpu: Execution):
    size, keys = GLO[case]
    keys = {"loss": Loss(kind="l1"), **keys}
    if isinstance(keys["loss"], dict):
        keys["loss"] = Loss(kind="perceptual", weights=random_vgg, **keys["loss"])
    images = images_of(size, 22 if size == 128 else 42)  # batches of two sizes
    with SimulatedGpu() as gpu:
        found = glo(images, gpu_execution(cuda_graphs=recorded), **keys)
    assert_equal(found, glo(images, cpu, **keys))
    assert bool(gpu.replays) == recorded


IMLE = {
    "mlp, distance": {"mapping": Mapping(kind="mlp", width=16, depth=2), "epochs": 5},
    "residual, distance": {},
    "residual, squared": {"mapping": Mapping(kind="residual", width=16, depth=2), "loss": "squared"},
    "approximate": {"index": "IVF4,Flat;nprobe=2", "refresh": 2},
    "residuals": {"residuals": 0.5},
    "normalize": {"parameter_groups": [ParameterGroup(match="*", gradient="normalize")]},
    "conditional": {"conditional": True, "labels": torch.arange(600) % 5},
}


@pytest.mark.parametrize("case", IMLE)
@pytest.mark.parametrize("recorded", [True, False])
def test_imle_on_a_gpu_is_imle_on_a_cpu(case: str, recorded: bool, cpu: Execution):
    keys = {"epochs": 3, "batch_size": 64, **IMLE[case]}
    with SimulatedGpu() as gpu:
        found = imle(clusters(), gpu_execution(cuda_graphs=recorded), **keys)
    assert_equal(found, imle(clusters(), cpu, **keys))
    assert bool(gpu.replays) == recorded


def test_adam_on_a_gpu_is_one_that_can_be_recorded():
    with SimulatedGpu():
        module = torch.nn.Linear(2, 2).to("cuda")
        assert optimization.adam(module, 0.1, []).defaults["capturable"]
    assert not optimization.adam(torch.nn.Linear(2, 2), 0.1, []).defaults["capturable"]


def per_step(train: Any, steps: int, recorded: bool) -> tuple[float, Counter[str]]:
    """Return how many operations a step starts, and why steps wait: in a run, less those of a shorter one."""
    runs = []
    for n in (steps, 2 * steps):
        with SimulatedGpu() as gpu:
            train(n, gpu_execution(cuda_graphs=recorded))
        runs.append(gpu)
    short, long = runs
    return (long.operations - short.operations) / steps, long.waits - short.waits


@pytest.mark.parametrize("recorded", [True, False])
def test_a_step_of_glo_waits_for_nothing(recorded: bool, random_vgg: str):
    loss = Loss(kind="perceptual", weights=random_vgg, levels=2, texture=1.0, crop=16)
    images = images_of(32, 16 * READ_EVERY)

    def train(steps: int, on: Execution) -> None:
        glo(
            images[: 4 * steps], on, batch_size=4, epochs=1, loss=loss, latent_noise=0.3, latent_init="random"
        )

    operations, waits = per_step(train, READ_EVERY, recorded)
    # Per READ_EVERY steps: the loss is read once, and the last batch-norm statistics need a batch per step.
    assert {name: count for name, count in waits.items() if "_local_scalar_dense" in name} == {
        "aten._local_scalar_dense.default reads from the GPU": 1
    }
    assert sum(waits.values()) <= 1 + READ_EVERY
    assert operations < (RECORDED + 60 if recorded else NOT_RECORDED)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_step_of_imle_waits_for_nothing(recorded: bool):
    latents = clusters(4 * READ_EVERY * 16)

    def train(steps: int, on: Execution) -> None:
        imle(latents[: 16 * steps], on, batch_size=16, epochs=1)

    operations, waits = per_step(train, 2 * READ_EVERY, recorded)
    assert waits == {"aten._local_scalar_dense.default reads from the GPU": 2}
    assert operations < (RECORDED if recorded else NOT_RECORDED)


def test_a_killed_run_on_a_gpu_resumes_to_the_same_bytes(cpu: Execution, tmp_path: Path):
    runs = [(glo, images_of(16), {"loss": Loss(kind="l1")}), (imle, clusters(), {})]
    for train, examples, keys in runs:
        folder = tmp_path / train.__name__
        folder.mkdir()
        with SimulatedGpu() as gpu:
            on = gpu_execution()
            with pytest.raises(Killed):
                train(examples, on, KilledOnce(folder, "a stage", "a run", minutes=0), epochs=3, **keys)
            before = gpu.replays
            again = Checkpoints(folder, "a stage", "a run", minutes=60)
            found = train(examples, on, again, epochs=3, **keys)
        assert gpu.replays > before
        assert_equal(found, train(examples, cpu, epochs=3, **keys))


def test_in_bfloat16_a_recording_computes_what_plain_steps_do(random_vgg: str):
    losses = []
    for recorded in (True, False):
        with SimulatedGpu():
            on = execution(Compute(device="cuda", threads=1, cuda_graphs=recorded))
            assert on.precision == torch.bfloat16
            losses.append(glo(images_of(16), on, loss=Loss(kind="perceptual", weights=random_vgg, levels=2)))
    assert_equal(*losses)


def test_what_cannot_be_recorded_runs_step_by_step(
    cpu: Execution, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A gradient is read in the middle of a step."""
    plain = ParameterGroup(match="*", gradient="none")  # lengths of gradients count
    keys = {"loss": Loss(kind="l1"), "parameter_groups": [plain]}
    expected = glo(images_of(16), cpu, **keys)
    original = optimization._transform_gradient

    def reading(parameters: list[torch.nn.Parameter], *rest: Any) -> None:
        parameters[0].grad.sum().item()
        original(parameters, *rest)

    monkeypatch.setattr(optimization, "_transform_gradient", reading)
    with SimulatedGpu() as gpu:
        found = glo(images_of(16), gpu_execution(), **keys)
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot record" in line]
    assert len(said) == 1 and "not permitted when stream is capturing" in said[0]
    assert gpu.replays == 0 and gpu.stream is gpu.default_stream
    assert_equal(found, expected)


def test_recordings_of_an_earlier_part_and_their_memory_are_dropped():
    with SimulatedGpu() as gpu:
        total = torch.zeros((), device="cuda")
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        take_step = Replay(lambda x: total.add_(x["a"].sum()).clone(), optimizer, gpu_execution())
        for size in [2] * (WARM_UP + 2) + [3] * (WARM_UP + 2):
            take_step({"a": torch.ones(size, device="cuda")}, phase="first")
        assert len(take_step._recordings) == gpu.recordings == 2 and gpu.replays == 4
        loss = take_step({"a": torch.ones(2, device="cuda")}, phase="second")
        assert not take_step._recordings and gpu.recordings == 2
        assert loss.item() == total.item() == 2 * (WARM_UP + 2) + 3 * (WARM_UP + 2) + 2


def test_memory_that_runs_out_while_recording_is_not_taken_for_a_missing_ability():
    def step(x: Inputs) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x["a"].sum()

    with SimulatedGpu():
        take_step = Replay(step, torch.optim.SGD([torch.zeros(1)]), gpu_execution())
        for _ in range(WARM_UP):
            take_step({"a": torch.ones(2, device="cuda")})
        with pytest.raises(torch.OutOfMemoryError):
            take_step({"a": torch.ones(2, device="cuda")})
