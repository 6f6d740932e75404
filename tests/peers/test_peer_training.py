"""Rivals learn, go on where they ended, stop where they go wrong, and are the same on any machine."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from simulated_gpu import SimulatedGpu, held
from small_peers import SECTIONS, architecture, section, step_of, train
from torch import Tensor, nn

from glann.errors import DivergedError, GlannError
from glann.glo.settings import Loss
from glann.peers import train as training
from glann.peers.train import SNAPSHOTS, PeerResult, train_peer
from glann.runtime.compute import Execution, execution
from glann.runtime.randomness import stream
from glann.runtime.settings import Compute
from glann.runtime.tensors import load_tensors
from glann.training.checkpoints import Checkpoints
from glann.training.course import READ_EVERY

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")
INFOGAN = {"kind": "infogan"}  # has batch normalisation
FAST = {
    "vae": {"lr": 0.005, "passes": 20},
    "gan": {"lr": 0.002, "passes": 40},
    "wgan_gp": {"lr": 0.002, "passes": 20},
    "ogan": {"lr": 0.001, "passes": 25},
    "energy": {"lr": 0.001, "passes": 25, "penalty": 1.0},
}


def images_of(size: int, n: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8)


def drawn(decoder: nn.Module) -> Tensor:
    noise = torch.randn(200, 8, generator=stream(0, "samples of a test"))
    with torch.no_grad():
        return decoder.eval()(F.normalize(noise, dim=1))


def pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def state(result: PeerResult) -> list[Tensor]:
    networks = [result.decoder, result.judge, *result.snapshots.values()]
    return [held(value) for network in networks for value in network.state_dict().values()]


def assert_equal(found: PeerResult, expected: PeerResult) -> None:
    """Compare two results bit by bit."""
    assert found.history == expected.history
    assert [*found.snapshots] == [*expected.snapshots] == [*SNAPSHOTS]
    ours, theirs = state(found), state(expected)
    assert len(ours) == len(theirs) > 20
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", SECTIONS)
def test_samples_of_every_rival_come_to_resemble_the_images(name: str, shapes: np.ndarray, cpu: Execution):
    real = pixels(shapes)

    def mean_differs_by(images: Tensor) -> float:
        return (images.mean(dim=0) - real.mean(dim=0)).abs().mean().item()

    before = drawn(step_of(name, shapes, cpu).decoder)
    after = drawn(train(name, shapes, cpu, ema=0.9, **FAST[name]).decoder)
    # With three other seeds, 0.18 to 0.45 of the distance at the start, and 0.47 to 1.0 of the variety.
    assert mean_differs_by(after) < 0.6 * mean_differs_by(before)
    assert after.std(dim=0).mean() > 0.3 * real.std(dim=0).mean()


def test_a_variational_autoencoder_reconstructs_each_image(cpu: Execution):
    """Half of the images are orange and half are blue, in several shades."""
    colours = np.array([[230, 120, 30], [30, 60, 200]])[np.arange(24) % 2]
    colours = colours + np.random.default_rng(0).integers(-20, 20, (24, 3))
    images = np.broadcast_to(colours[:, None, None], (24, 16, 16, 3)).astype(np.uint8)
    result = train("vae", images, cpu, ema=0.9, lr=0.005, passes=40)
    real = pixels(images)
    with torch.no_grad():
        means = result.judge(real)[:, :8]
        error = (result.decoder(F.normalize(means, dim=1)) - real).abs().mean()
    ignorance = (real - real.median(dim=0).values).abs().mean()  # the best one image for all
    assert error < 0.5 * ignorance


def test_the_judge_of_an_o_gan_reads_the_noise_from_its_image(shapes: np.ndarray, cpu: Execution):
    result = train("ogan", shapes, cpu, ema=0.9, **FAST["ogan"])
    noise = torch.randn(200, 8, generator=stream(0, "samples of a test"))
    with torch.no_grad():
        code = result.judge(result.decoder(F.normalize(noise, dim=1)))
    centred = (noise - noise.mean(dim=1, keepdim=True), code - code.mean(dim=1, keepdim=True))
    # Between chance, where 200 pairs have a mean of 0 +- 0.03, and 1.
    assert F.cosine_similarity(*centred).mean() > 0.3


def test_an_energy_is_lower_at_images_than_at_noise(shapes: np.ndarray, cpu: Execution):
    result = train("energy", shapes, cpu, **FAST["energy"])
    with torch.no_grad():
        at_images, at_noise = (result.judge(pixels(images)) for images in (shapes, images_of(16)))
    assert at_images.mean() < at_noise.min()


class Killed(Exception):  # noqa: N818
    pass


class KilledAfter(Checkpoints):
    """Ends a run behind a checkpoint, with whatever is in memory lost."""

    saves = 0
    limit = 0

    def save(self, tensors: dict[str, Tensor], position: dict) -> None:
        super().save(tensors, position)
        self.saves += 1
        if self.saves == self.limit:
            raise Killed


@pytest.mark.parametrize(
    ("name", "decoder"),
    [*((name, {}) for name in SECTIONS), ("gan", INFOGAN), ("wgan_gp", INFOGAN)],
    ids=[*SECTIONS, "gan, batch norm", "wgan_gp, batch norm"],
)
def test_a_rival_killed_anywhere_ends_with_the_same_bytes(
    name: str, decoder: dict, cpu: Execution, tmp_path: Path
):
    images = images_of(32 if decoder else 16, n=16)
    keys = {"decoder": decoder, "passes": 5, "schedule": "cosine"}
    keys |= {"batch_size": 4} if name == "wgan_gp" else {}  # 2 such batches a step, so also 2 steps a pass
    expected = train(name, images, cpu, **keys)
    # Snapshots come after steps 1, 2, 3 and 5 of 10; 11 is the checkpoint of the finished run.
    for at in (1, 4, 6, 11):
        killed = KilledAfter(tmp_path / str(at), name, "a run", minutes=0)
        killed.limit = at
        with pytest.raises(Killed):
            train(name, images, cpu, killed, **keys)
        again = Checkpoints(tmp_path / str(at), name, "a run", minutes=60)
        assert_equal(train(name, images, cpu, again, **keys), expected)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(cpu: Execution, tmp_path: Path):
    images = images_of(16, n=16)
    expected = train("energy", images, cpu, passes=3)
    runs = 0
    while runs < 20:
        runs += 1
        killed = KilledAfter(tmp_path, "energy", "a run", minutes=0)
        killed.limit = 2
        try:
            found = train("energy", images, cpu, killed, passes=3)
            break
        except Killed:
            pass
    assert runs == 4  # 6 steps and the end, with two saves a run
    assert_equal(found, expected)


def test_snapshots_are_what_a_run_had_averaged_by_then(cpu: Execution, tmp_path: Path):
    images = images_of(16, n=16)
    result = train("ogan", images, cpu, passes=9, ema=0.9)
    # Of 18 steps, the first after which a 16th, an 8th, a quarter and a half of the training is done.
    for (at, decoder), step in zip(result.snapshots.items(), (2, 3, 5, 9), strict=True):
        killed = KilledAfter(tmp_path / str(at), "ogan", "a run", minutes=0)
        killed.limit = step
        with pytest.raises(Killed):
            train("ogan", images, cpu, killed, passes=9, ema=0.9)
        tensors, _ = load_tensors(killed.path)
        for name, value in decoder.state_dict().items():
            assert torch.equal(value, tensors[f"average.module.{name}"]), (at, name)
    assert not torch.equal(*(drawn(result.snapshots[at]) for at in (1 / 4, 1 / 2)))


@pytest.mark.parametrize("decoder", [{}, INFOGAN], ids=["residual", "batch norm"])
def test_the_result_is_the_moving_average_and_its_batch_norm_statistics_are_its_own(
    decoder: dict, cpu: Execution
):
    images = images_of(32 if decoder else 16)
    results = [train("gan", images, cpu, decoder=decoder, ema=ema, passes=6) for ema in (0.0, 0.9)]
    of_last, of_average = (result.decoder for result in results)
    assert not torch.equal(*(next(d.parameters()) for d in (of_last, of_average)))
    if decoder:
        for result in results:
            for network in (result.decoder, *result.snapshots.values()):
                noise = F.normalize(torch.randn(4000, 8, generator=stream(1, "noise")), dim=1)
                layer = network.network.grid_norm
                with torch.no_grad():
                    x = F.leaky_relu(network.network.dense(noise * 8**0.5), 0.2)
                    x = network.network.to_grid(x)
                spread = x.std(dim=0)
                assert ((layer.running_mean - x.mean(dim=0)).abs() / spread).max() < 0.4  # of 160 rows
                assert 0.2 < (layer.running_var / spread.square()).median() < 2


@pytest.mark.parametrize(("images", "batch", "batches"), [(66, 64, 20), (1921, 64, 31), (10**6, 64, 156)])
def test_statistics_are_of_full_batches_and_of_enough(images: int, batch: int, batches: int, cpu: Execution):
    drawn_with = architecture(images_of(16))
    shares = [*training.shares_of_noise(drawn_with, 0, "gan", images, batch)]
    assert [len(share) for share in shares] == [batch] * batches
    rows = torch.cat(shares)
    assert rows.norm(dim=1) == pytest.approx(1) and len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("name", SECTIONS)
def test_weights_that_are_no_numbers_end_a_run_in_one_line(name: str, cpu: Execution, tmp_path: Path):
    images = images_of(16)
    config = section(name).model_copy(update={"lr": 1e38})  # more than the schema allows
    with pytest.raises(DivergedError) as error:
        train_peer(
            name,
            images,
            config,
            architecture(images),
            Loss(kind="l1"),
            0,
            cpu,
            Checkpoints(tmp_path, name, "a run", minutes=60),
        )
    said = str(error.value)
    assert "\n" not in said and said.startswith(f"{error.value.what}; no checkpoint was written yet; lower ")
    assert error.value.what.startswith(f"{name}: epoch 1, step ") and "the loss is nan" in error.value.what
    assert (
        f"lower {name}.lr (1e+38), or clip gradients by {name}.parameter_groups, in peers/params.yaml" in said
    )


def test_samples_that_are_all_one_picture_end_a_run(
    shapes: np.ndarray, cpu: Execution, monkeypatch: pytest.MonkeyPatch
):
    flat = {"match": "decoder.network.dense.*", "lr_multiplier": 10.0}
    train("gan", shapes, cpu, parameter_groups=[flat])
    original = training.PeerStep.update

    def collapse(step: training.PeerStep, x: dict) -> None:
        original(step, x)
        with torch.no_grad():
            step.decoder.network.dense.weight.zero_()  # the latent has no effect

    monkeypatch.setattr(training.PeerStep, "update", collapse)
    what = "gan: epoch 2: all samples are one picture"
    with pytest.raises(DivergedError, match=what) as error:  # at the end, if not before
        train("gan", shapes, cpu)
    assert error.value.what == what
    monkeypatch.setattr(training, "SETTLED_AFTER", 9)  # steps, of which a pass has 6
    with pytest.raises(DivergedError, match=what):
        train("gan", shapes, cpu, passes=9)
    constant = np.full_like(shapes, 7)  # here one picture is right
    train("gan", constant, cpu)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 16, 16, 3), np.float32), r"uint8 \[n, 16, 16, 3\], found float32 \[8, 16, 16, 3\]"),
        (np.zeros((8, 16, 16), np.uint8), r"found uint8 \[8, 16, 16\]"),
        (np.zeros((8, 16, 16, 1), np.uint8), r"found uint8 \[8, 16, 16, 1\]"),
        (np.zeros((8, 32, 32, 3), np.uint8), r"found uint8 \[8, 32, 32, 3\]"),
        (np.zeros((1, 16, 16, 3), np.uint8), "two or more images"),
    ],
)
def test_images_that_do_not_fit_are_one_line(images: np.ndarray, message: str, cpu: Execution):
    made = architecture(images_of(16, 2))
    with pytest.raises(GlannError, match=message):
        train_peer("gan", images, section("gan"), made, Loss(kind="l1"), 0, cpu)


@pytest.mark.parametrize("n", [9, 19])
def test_too_few_images_for_the_steps_of_the_critic_are_one_line(n: int, cpu: Execution):
    """Of 19 images, batches have 10 and 9, which is less than 5 times 2."""
    message = r"wgan_gp\.critic_steps: 5 steps need 10 images or more, there are 9 per batch; lower it"
    keys = {"decoder": INFOGAN, "batch_size": 2}
    with pytest.raises(GlannError, match=message):
        train("wgan_gp", images_of(32, n), cpu, critic_steps=5, **keys)
    train("wgan_gp", images_of(32, 20), cpu, critic_steps=5, passes=1, **keys)


@pytest.mark.parametrize("name", ["vae", "gan", "ogan", "energy"])
@pytest.mark.parametrize("decoder", [{}, INFOGAN], ids=["residual", "batch norm"])
def test_two_grey_images_are_trained_on(name: str, decoder: dict, cpu: Execution):
    result = train(name, images_of(32, 2, channels=1), cpu, decoder=decoder)
    assert all(value.isfinite().all() for value in state(result))


def test_where_memory_is_short_what_lowers_it_is_advised(cpu: Execution):
    images = np.broadcast_to(np.zeros((1, 16, 16, 3), np.uint8), (100_000_000, 16, 16, 3))
    message = r"gan: needs about .*; lower gan\.batch_size \(50000000\) in peers/params\.yaml, or glo"
    with pytest.raises(GlannError, match=message):
        train("gan", images, cpu, batch_size=50_000_000)


@pytest.mark.parametrize("name", SECTIONS)
def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(name: str, cpu: Execution):
    images = images_of(16, n=16)
    first = train(name, images, cpu)
    torch.manual_seed(7)  # global generators are not used
    assert_equal(train(name, images, cpu), first)
    other = train(name, images, cpu, seed=1)
    assert not any(torch.equal(a, b) for a, b in zip(state(first)[:1], state(other)[:1], strict=True))


@pytest.mark.parametrize("name", SECTIONS)
def test_groups_of_parameters_are_those_of_one_network(name: str, cpu: Execution):
    """Frozen parameters stay as they were drawn."""
    images = images_of(16, n=16)
    drawn_at_first = step_of(name, images, cpu).networks
    for part in ("decoder", "judge"):
        frozen = [{"match": f"{part}.*", "lr_multiplier": 0}]
        result = train(name, images, cpu, ema=0.0, parameter_groups=frozen)
        for other, network in (("decoder", result.decoder), ("judge", result.judge)):
            pairs = zip(network.parameters(), drawn_at_first[other].parameters(), strict=True)
            assert all(torch.equal(a, b) == (other == part) for a, b in pairs if a.dim() > 1)


def test_a_group_of_the_network_that_bounds_the_entropy_has_an_effect(cpu: Execution):
    images = images_of(16, n=16)
    slower = [{"match": "statistics.*", "lr_multiplier": 0.1}]
    found, plain = train("energy", images, cpu, parameter_groups=slower), train("energy", images, cpu)
    assert not torch.equal(state(found)[0], state(plain)[0])


@pytest.mark.parametrize(("name", "match"), [("gan", "statistics.*"), ("vae", "blocks.*"), ("ogan", "D*")])
def test_a_pattern_that_matches_nothing_is_one_line(name: str, match: str, cpu: Execution):
    with pytest.raises(GlannError, match=r'parameter_groups: "[^"]+" matches none of: decoder\.') as error:
        train(name, images_of(16, n=16), cpu, parameter_groups=[{"match": match}])
    assert f'"{match}"' in str(error.value) and "judge.out.bias" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("gan", "normalize"),
        ("wgan_gp", "clip_norm"),
        ("wgan_gp", "clip_value"),
        ("wgan_gp", "normalize"),
    ],
)
def test_gradients_of_each_network_can_be_limited(name: str, gradient: str, cpu: Execution):
    """Also where a step concerns one network only, as those of a critic do."""
    images = images_of(16, n=16)
    groups = [{"match": f"{part}.*", "gradient": gradient, "limit": 1e-6} for part in ("decoder", "judge")]
    found = train(name, images, cpu, parameter_groups=groups)
    assert all(value.isfinite().all() for value in state(found))


# In several processes

# Adam takes any multiple of a gradient as the same; clipping does not.
CLIPPED = {"parameter_groups": [{"match": "*", "gradient": "clip_value", "limit": 1e-4}]}
IN_PROCESSES = {name: {"passes": 2, "decoder": INFOGAN if name == "gan" else {}} for name in SECTIONS}
IN_PROCESSES["vae"] |= CLIPPED
IN_PROCESSES["ogan"] |= CLIPPED
TWO = """
import sys
import numpy as np, torch.distributed as dist
from small_peers import SECTIONS, train
from test_peer_training import IN_PROCESSES
from glann.runtime.compute import execution
from glann.runtime.files import save_json
from glann.runtime.settings import Compute
folder, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=int(rank), world_size=2)
on = execution(Compute(device="cpu", precision="float32", threads=1))
for name in SECTIONS:
    result = train(name, np.load(f"{folder}/images.npy"), on, **IN_PROCESSES[name])
    result.decoder.save(f"{folder}/{name}-{rank}.safetensors")
    save_json(f"{folder}/{name}-{rank}.json", result.history)
"""


def test_two_processes_train_the_rivals_that_one_does(cpu: Execution, tmp_path: Path):
    images = images_of(32, n=30)  # batches of 8 and 7
    np.save(tmp_path / "images.npy", images)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
    }
    command = [sys.executable, "-W", "ignore", "-c", TWO, str(tmp_path)]
    both = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    for name in SECTIONS:
        found, other = (load_tensors(tmp_path / f"{name}-{rank}.safetensors")[0] for rank in range(2))
        assert all(torch.equal(found[key], other[key]) for key in found), name  # one rival, not two
        result = train(name, images, cpu, **IN_PROCESSES[name])
        losses = [entry["loss"] for entry in json.loads((tmp_path / f"{name}-0.json").read_text())]
        expected = [entry["loss"] for entry in result.history]
        if name in ("vae", "gan", "ogan"):
            assert losses[0] == pytest.approx(expected[0], rel=1e-4), name
            assert losses == pytest.approx(expected, rel=0.02), name  # rounding grows
            for key, value in result.decoder.state_dict().items():
                # Of weights of about 0.1, after 8 steps of 2e-4 or, of the VAE, 1e-3.
                assert (found[key].double() - value).abs().mean() < 2e-4, (name, key)
        else:  # They compare images with other noise, or cut batches into other parts.
            assert losses == pytest.approx(expected, rel=0.5), name


# On a GPU


def gpu(**keys: object) -> Execution:
    return execution(Compute(device="cuda", precision="float32", threads=1, **keys))


@no_gpu
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "step by step"])
@pytest.mark.parametrize("name", SECTIONS)
def test_a_rival_on_a_gpu_is_the_one_on_a_cpu(name: str, recorded: bool, cpu: Execution):
    images = images_of(16, n=26)
    keys = {"passes": 5} | ({"batch_size": 4} if name == "wgan_gp" else {})  # batches of 7 and 6
    with SimulatedGpu() as simulated:
        found = train(name, images, gpu(cuda_graphs=recorded), **keys)
    assert_equal(found, train(name, images, cpu, **keys))
    assert bool(simulated.replays) == recorded


@no_gpu
def test_a_rival_with_batch_normalisation_on_a_gpu_is_the_one_on_a_cpu(cpu: Execution):
    images = images_of(32, n=24)
    for name in ("gan", "wgan_gp"):
        with SimulatedGpu() as simulated:
            found = train(name, images, gpu(), decoder=INFOGAN, passes=4)
        assert_equal(found, train(name, images, cpu, decoder=INFOGAN, passes=4))
        assert simulated.replays


@no_gpu
def test_a_rival_killed_on_a_gpu_ends_with_the_same_bytes(cpu: Execution, tmp_path: Path):
    images = images_of(16, n=24)
    expected = train("gan", images, cpu, passes=6)
    with SimulatedGpu():
        killed = KilledAfter(tmp_path, "gan", "a run", minutes=0)
        killed.limit = 8
        with pytest.raises(Killed):
            train("gan", images, gpu(), killed, passes=6)
    with SimulatedGpu() as simulated:
        again = Checkpoints(tmp_path, "gan", "a run", minutes=60)
        assert_equal(train("gan", images, gpu(), again, passes=6), expected)
    assert simulated.replays


@no_gpu
def test_steps_of_a_rival_wait_for_nothing():
    """The loss is read once in so many steps, and nothing else makes the GPU wait."""
    runs: list[Counter[str]] = []
    for steps in (READ_EVERY, 2 * READ_EVERY):
        with SimulatedGpu() as simulated:
            train("gan", images_of(16, n=4 * steps), gpu(), passes=1, batch_size=4)
        runs.append(simulated.waits)
    assert runs[1] - runs[0] == {"aten._local_scalar_dense.default reads from the GPU": 1}
