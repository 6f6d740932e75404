from pathlib import Path

import numpy as np
import pytest
import torch

from glann.errors import GlannError
from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.images.tensors import to_float, upload
from glann.runtime.compute import Execution, execution
from glann.runtime.settings import Compute
from glann.training.checkpoints import Checkpoints
from glann.training.settings import ParameterGroup

TINY = {"decoder": {"width": 8}, "latent_dim": 8, "epochs": 4, "batch_size": 16}


@pytest.mark.parametrize("decoder", [{"width": 8}, {"kind": "infogan", "width": 8}])
def test_glo_learns_to_reconstruct(decoder: dict, shapes: np.ndarray, cpu: Execution):
    images = shapes if "kind" not in decoder else np.pad(shapes, ((0, 0), (6, 6), (6, 6), (0, 0)))
    fast = {"epochs": 120, "decoder_lr": 0.01, "latent_lr": 0.03, "ema": 0.9, "loss": {"kind": "l1"}}
    result = train_glo(images, Glo(**(TINY | fast | {"decoder": decoder})), 0, cpu)
    losses = [entry["loss"] for entry in result.history]
    ignorance = np.abs(images / 255 - np.median(images / 255, axis=0)).mean()  # the best one image for all
    assert losses[-1] < 0.8 * ignorance < losses[0]
    assert torch.allclose(result.latents.norm(dim=1), torch.ones(48), atol=1e-5)
    with torch.no_grad():
        error = (result.decoder(result.latents) - to_float(upload(images, cpu))).abs().mean()
    assert error < 0.8 * ignorance  # the averaged decoder reconstructs, not only the last one


def test_a_decoder_that_draws_one_picture_for_all_is_noticed(
    shapes: np.ndarray, cpu: Execution, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("glann.glo.train.SETTLED_AFTER", 9)
    monkeypatch.setattr("glann.training.variety.LEAST_VARIETY", 0.5)
    # A decoder that is frozen draws hardly more than grey for ever.
    frozen = [ParameterGroup(match="*", lr_multiplier=0)]
    with pytest.raises(GlannError, match=r"glo: epoch 3: the loss will not fall: all latents decode to one"):
        train_glo(shapes, Glo(**TINY, parameter_groups=frozen), 0, cpu)
    constant = np.full_like(shapes, 7)  # here one picture is right
    train_glo(constant, Glo(**TINY, parameter_groups=frozen), 0, cpu)


def test_a_short_run_that_draws_one_picture_says_so(
    shapes: np.ndarray,
    cpu: Execution,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("glann.training.variety.LEAST_VARIETY", 0.5)
    frozen = [ParameterGroup(match="*", lr_multiplier=0)]
    train_glo(shapes, Glo(**(TINY | {"epochs": 2}), parameter_groups=frozen), 0, cpu)
    assert "glo: all latents decode to one picture; lower glo.latent_lr" in capsys.readouterr().err


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(shapes: np.ndarray, cpu: Execution):
    def train(seed: int) -> torch.Tensor:
        return train_glo(shapes, Glo(**TINY), seed, cpu).latents

    assert torch.equal(train(0), train(0))
    assert not torch.equal(train(0), train(1))


def test_an_infinite_loss_names_the_place_and_the_checkpoint(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path
):
    config = Glo(**TINY).model_copy(update={"decoder_lr": 1e38})  # more than the schema would allow
    with pytest.raises(GlannError, match=r"glo: epoch \d+, step \d+: the loss is nan; no checkpoint was"):
        train_glo(shapes, config, 0, cpu, Checkpoints(tmp_path, "glo", "test", minutes=60))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_advised_for_a_loss_that_goes_wrong_fits_the_run(precision: str, shapes: np.ndarray):
    config = Glo(**TINY).model_copy(update={"decoder_lr": 1e38})
    with pytest.raises(GlannError, match=r"lower glo\.latent_lr and glo\.decoder_lr, clip") as error:
        train_glo(shapes, config, 0, execution(Compute(device="cpu", precision=precision, threads=1)))
    assert ("compute.precision" in str(error.value)) == (precision == "bfloat16")


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
def test_images_that_cannot_be_trained_on_are_one_line(images: np.ndarray, message: str, cpu: Execution):
    with pytest.raises(GlannError, match=message):
        train_glo(images, Glo(**TINY), 0, cpu)


@pytest.mark.parametrize("kind", ["residual", "infogan", "smooth"])
def test_two_equal_constant_images_are_trained_on(kind: str, cpu: Execution):
    config = Glo(**(TINY | {"decoder": {"kind": kind, "width": 8}, "batch_size": 1}))
    result = train_glo(np.full((2, 32, 32, 1), 128, np.uint8), config, 0, cpu)
    assert result.latents.isfinite().all()


@pytest.mark.parametrize("kind", ["l1", "laplacian", "perceptual"])
def test_where_memory_is_short_only_what_lowers_it_is_advised(kind: str, cpu: Execution):
    images = np.broadcast_to(np.zeros((1, 64, 64, 3), np.uint8), (10_000_000, 64, 64, 3))
    config = Glo(batch_size=5_000_000, loss={"kind": kind})
    with pytest.raises(GlannError, match=r"lower glo\.batch_size \(5000000\), glo\.decoder\.width") as error:
        train_glo(images, config, 0, cpu)
    assert ("glo.loss.crop" in str(error.value)) == (kind == "perceptual")


def test_the_decoder_is_trained_on_latents_with_noise(shapes: np.ndarray, cpu: Execution):
    def train(latent_noise: float) -> torch.Tensor:
        return train_glo(shapes, Glo(**(TINY | {"latent_noise": latent_noise})), 0, cpu).latents

    assert not torch.equal(train(0.0), train(0.5))
