"""Full disks, little memory, kills, damaged files, degenerate images: one line each, and nothing is lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import stage_at_once
from conftest import ROOT
from torch import nn
from training_project import project, wait_for

from benchmarks import kills, mutate
from benchmarks.clone import clone_to, output_digests
from glann.errors import GlannError
from glann.evaluate.evaluation import evaluate
from glann.evaluate.report import write_report
from glann.evaluate.settings import Evaluate
from glann.glo.losses import laplacian
from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.imle.settings import Imle
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.params import Params
from glann.prepare.dataset import prepare
from glann.prepare.settings import Prepare
from glann.runtime.compute import Execution
from glann.runtime.files import STAGES
from glann.runtime.memory import activations, activations_in_float32, check_memory
from glann.runtime.npy import load_npy
from glann.sample.generator import Generator

TOO_SMALL = 700  # bytes, less than the smallest file that every stage writes


def stage(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Run a stage, the folder's own modules first."""
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_full_disk_is_one_line_at_every_stage_and_costs_nothing(shapes: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "shapes.npy", shapes)
    changes = {
        "prepare": {"source": "npy", "path": "shapes.npy", "count": None, "holdout": 16, "resolution": 16},
        "glo": {"epochs": 2},
        "imle": {"epochs": 2},
        "sample": {"count": 4},
        "evaluate": {"features": "pixels", "count": 16, "mixture_components": 1},
    }
    project(tmp_path, shapes, changes)
    for name in STAGES:
        before = files(tmp_path / "data" / name)
        failed = stage_at_once(tmp_path, name, largest=TOO_SMALL)
        said = [line for line in failed.stderr.splitlines() if line.startswith("glann:")]
        assert failed.returncode == 1 and "Traceback" not in failed.stderr, failed.stderr
        assert len(said) == 1 and said[0].startswith(f"glann: data/{name}"), said
        assert "could not be written" in said[0] and "too large" in said[0]
        assert files(tmp_path / "data" / name) == before
        done = stage_at_once(tmp_path, name)
        assert done.returncode == 0, done.stderr
        assert len(files(tmp_path / "data" / name)) >= 2


def test_sigterm_ends_a_stage_and_leaves_nothing_half_written(shapes: np.ndarray, tmp_path: Path):
    project(tmp_path, shapes, {"prepare": {"count": 500_000, "holdout": 10, "resolution": 32}})
    for path in (tmp_path / "data/prepare").iterdir():
        path.unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.prepare"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    wait_for(lambda: any((tmp_path / "data/prepare").rglob("images.npy")))
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM and not list((tmp_path / "data/prepare").iterdir())


def test_killed_again_and_again_dvc_repro_ends_with_the_same_bytes(tmp_path: Path):
    small = kills.SMALL | {
        "glo": kills.SMALL["glo"] | {"epochs": 4},
        "prepare": {"count": 200, "resolution": 32, "holdout": 60},
        "evaluate": kills.SMALL["evaluate"] | {"count": 100},
    }
    whole = clone_to(tmp_path / "whole", small)
    seconds, status, said = kills.run(whole)
    assert status == 0, said
    fresh = clone_to(tmp_path / "fresh", small)
    # On a machine that is busy now and quiet then, a run may take half the time of another.
    outcome = kills.kill_and_repeat(fresh, output_digests(whole), seconds / 2, seed=0, clock=False)
    assert outcome.same and outcome.kills, outcome


def test_without_dvc_a_stage_stops_by_itself(shapes: np.ndarray, tmp_path: Path):
    folder = project(tmp_path, shapes, {"glo": {"epochs": 100_000}}, checkpoint_minutes=0)
    code = f"import subprocess, sys; subprocess.run([{sys.executable!r}, '-m', 'stages.glo'])"
    environment = {"PYTHONPATH": str(ROOT), "DVC_STAGE": "glo"}
    with (tmp_path / "said").open("w") as said:
        parent = subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, stderr=said)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    wait_for(lambda: bool(children.read_text()))
    child = Path("/proc") / children.read_text().split()[0]
    wait_for(lambda: [*(folder / ".checkpoints").glob("glo-*.safetensors")])  # training has begun
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.exists() or "Z" in (child / "stat").read_text().split(")")[1][:3])
    assert (tmp_path / "said").read_text().startswith("glann: stopped, checkpoint in ")
    assert not list(folder.glob("data/glo/*"))


def test_thousands_of_changed_files_are_read_or_refused():
    outcomes = mutate.run(1200, seed=2, keep=None)
    assert len(outcomes) == 12
    assert not {kind: counts for kind, counts in outcomes.items() if set(counts) - {"read", "refused"}}


@pytest.mark.parametrize("kind", ["residual", "infogan", "dcgan", "smooth"])
def test_activations_are_counted_without_making_any(kind: str, cpu: Execution):
    size = 32 if kind != "dcgan" else 64
    architecture = DecoderArchitecture(
        config=Decoder(kind=kind, width=8), latent_dim=6, size=size, channels=3
    )
    decoder = DecoderNetwork(architecture)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder(torch.randn(10, 6, requires_grad=True))
    own = {p.data_ptr() for p in decoder.parameters()}
    real = sum(nbytes for pointer, nbytes in kept.items() if pointer not in own)
    assert activations(decoder, (10, 6), cpu).stored == pytest.approx(real, rel=0.1)


def test_what_a_loss_stores_is_told_beforehand():
    """Also where only every other pixel of a tensor is used, all of which is kept."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        laplacian(images, images.detach())
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    told = activations_in_float32(lambda x: laplacian(x, x.detach()), (2, 3, 64, 64))
    assert told.stored == pytest.approx(real, rel=0.02)


def test_what_cannot_fit_is_refused_before_the_work_begins(cpu: Execution):
    images = np.broadcast_to(np.zeros((1, 1024, 1024, 3), np.uint8), (100_000, 1024, 1024, 3))
    config = Glo(batch_size=50_000, decoder=Decoder(width=256))
    start = time.monotonic()
    with pytest.raises(
        GlannError, match=r"glo: needs about \d+\.\d GiB of memory on cpu, but only .*lower glo\.batch"
    ):
        train_glo(images, config, 0, cpu)
    assert time.monotonic() - start < 20
    check_memory("glo", 1000, cpu, "nothing")


def test_memory_that_runs_out_all_the_same_is_one_line(shapes: np.ndarray, tmp_path: Path):
    project(tmp_path, shapes)
    (tmp_path / "sitecustomize.py").write_text(
        "import glann.glo.train, torch\n"
        "def greedy(*_):\n"
        "    return torch.empty(2**60)\n"
        "glann.glo.train.initial_latents = greedy\n"
    )
    result = stage(tmp_path, "glo")
    said = result.stderr.splitlines()
    assert result.returncode == 1 and len(said) == 1, said
    assert said[0].startswith("glann: memory ran out; lower glo.batch_size")


def test_a_missing_faiss_is_one_line(shapes: np.ndarray, tmp_path: Path):
    project(tmp_path, shapes)
    assert stage(tmp_path, "glo").returncode == 0
    (tmp_path / "faiss.py").write_text("raise ImportError('no faiss here')")
    result = stage(tmp_path, "imle")
    assert result.returncode == 1 and result.stderr.splitlines() == [
        "glann: Faiss cannot be imported (no faiss here); "
        "pip install faiss-gpu on Linux x86-64, faiss-cpu elsewhere"
    ]


def different(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 255, (n, 16, 16, 3), np.uint8)


DEGENERATE = {
    "one image": (different(1), "prepare.holdout: 2 images are to be held out, but there are only 1"),
    "two images": (different(2), "prepare.holdout: 2 images are to be held out, but there are only 2"),
    "three images": (different(3), "glo: needs two or more images"),
    "two to train on": (different(4), None),
    "all identical": (np.repeat(different(1), 20, axis=0), None),
    "all identical, which is not wanted": (
        np.repeat(different(1), 20, axis=0),
        "prepare.repeats: every picture repeats a held-out one",
    ),
    "constant colour": (np.full((20, 16, 16, 3), 7, np.uint8), None),
    "fewer than a batch, fewer than dimensions": (different(12), None),
}


@pytest.mark.parametrize(("images", "refusal"), DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_images_are_trained_on_or_refused_in_one_line(
    images: np.ndarray, refusal: str | None, cpu: Execution, tmp_path: Path
):
    np.save(tmp_path / "images.npy", images)
    repeats = "leave_out" if refusal else "keep"
    given = {"source": "npy", "path": str(tmp_path / "images.npy"), "count": None, "repeats": repeats}
    params = Params(
        prepare=Prepare.model_validate(given | {"holdout": 2, "resolution": 16}),
        glo=Glo(latent_dim=64, decoder=Decoder(width=4), epochs=3),
        imle=Imle(epochs=3),
        evaluate=Evaluate(features="pixels", mixture_components=3),
    )

    def pipeline() -> None:
        prepare(params.prepare, 0, tmp_path)
        train, holdout = load_npy(tmp_path / "images.npy"), load_npy(tmp_path / "holdout.npy")
        glo = train_glo(train, params.glo, 0, cpu)
        imle = fit_imle(glo.latents, params.imle, 0, cpu)
        generator = Generator(imle.mapping, glo.decoder, cpu)
        assert generator.sample(5).shape == (5, 16, 16, 3)
        evaluation = evaluate(params.evaluate, 0, train, holdout, glo.latents, generator)
        losses = {"glo": glo.history, "imle": imle.history}
        write_report(evaluation, holdout, losses, "seed: 0", tmp_path / "evaluate")
        assert all(
            p.isfinite().all() for network in (generator.mapping, glo.decoder) for p in parameters(network)
        )

    if refusal is None:
        pipeline()
    else:
        with pytest.raises(GlannError, match=refusal):
            pipeline()


def parameters(network: nn.Module) -> list[torch.Tensor]:
    return [*network.state_dict().values()]
