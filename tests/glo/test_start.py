"""Starting GLO from an earlier run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from glann.errors import GlannError
from glann.glo.latents import initial_latents
from glann.glo.settings import Glo
from glann.glo.start import Earlier, load_earlier, start_from
from glann.glo.train import GloResult, train_glo
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.decoders.settings import Decoder
from glann.networks.layers import initialize
from glann.runtime.compute import Execution
from glann.runtime.npy import save_npy
from glann.runtime.randomness import stream

TINY = Glo(latent_dim=8, decoder={"width": 8}, epochs=8, batch_size=16, loss={"kind": "l1"})


def save(folder: Path, images: np.ndarray, result: GloResult) -> str:
    save_npy(folder / "prepare/images.npy", images)
    save_npy(folder / "glo/latents.npy", result.latents.numpy())
    result.decoder.save(folder / "glo/decoder.safetensors")
    return str(folder)


@pytest.fixture
def earlier(tmp_path: Path, shapes: np.ndarray, cpu: Execution) -> tuple[str, GloResult]:
    result = train_glo(shapes, TINY, 0, cpu)
    return save(tmp_path / "data", shapes, result), result


def fresh(size: int, width: int = 8) -> DecoderNetwork:
    architecture = DecoderArchitecture(config=Decoder(width=width), latent_dim=8, size=size, channels=3)
    decoder = DecoderNetwork(architecture)
    initialize(decoder, stream(1, "test"))
    return decoder


def test_it_goes_on_where_the_earlier_run_ended(
    earlier: tuple[str, GloResult], shapes: np.ndarray, cpu: Execution, capsys: pytest.CaptureFixture[str]
):
    folder, before = earlier
    still = {"decoder_lr": 1e-12, "latent_lr": 1e-12, "epochs": 1}
    after = train_glo(shapes, TINY.model_copy(update={"start_from": folder, **still}), 7, cpu)
    assert torch.allclose(after.latents, before.latents, atol=1e-5)
    assert after.history[0]["loss"] == pytest.approx(before.history[-1]["loss"], rel=0.3)
    with torch.no_grad():
        difference = (after.decoder(after.latents) - before.decoder(before.latents)).abs().max()
    assert difference < 1e-3
    assert "starts from 48 latents of the same images and 0 predicted ones" in capsys.readouterr().err


def test_known_images_keep_their_latents_in_any_order_and_new_ones_get_what_a_regression_predicts(
    earlier: tuple[str, GloResult], shapes: np.ndarray, capsys: pytest.CaptureFixture[str]
):
    folder, before = earlier
    order = np.random.default_rng(0).permutation(48)
    new = np.roll(shapes[:3], 2, axis=1)
    images = np.concatenate([shapes[order], new])
    latents = start_from(load_earlier(folder, 8), images, fresh(16))
    assert torch.allclose(latents[:48], before.latents[torch.from_numpy(order)], atol=1e-6)
    assert torch.allclose(latents[48:].norm(dim=1), torch.ones(3))
    assert "48 latents of the same images and 3 predicted ones" in capsys.readouterr().err


def test_new_images_get_latents_near_those_that_they_would_have(shapes: np.ndarray):
    latents = initial_latents(shapes, TINY, 0, 0, 48)
    known = Earlier(shapes[:40], latents[:40], fresh(16))
    predicted = start_from(known, shapes[40:], fresh(16))
    alike = (predicted * latents[40:]).sum(dim=1)  # cosines
    assert alike.mean() > 0.8 > (latents[:8] * latents[40:]).sum(dim=1).mean() + 0.3


def test_equal_images_are_no_trouble(shapes: np.ndarray):
    same = shapes[:1].repeat(5, axis=0)
    known = Earlier(same, torch.eye(8)[:5], fresh(16))
    assert start_from(known, shapes[:4], fresh(16)).isfinite().all()


def test_at_twice_the_resolution_latents_and_common_layers_stay(
    earlier: tuple[str, GloResult], shapes: np.ndarray, capsys: pytest.CaptureFixture[str]
):
    folder, before = earlier
    larger = shapes.repeat(2, axis=1).repeat(2, axis=2)
    # Half the channels at the highest resolution: as many as before at the resolutions of before.
    decoder = fresh(32, width=4)
    latents = start_from(load_earlier(folder, 8), larger, decoder)
    assert torch.allclose(latents, before.latents, atol=1e-6)
    own, given = decoder.network, before.decoder.network
    assert torch.equal(own.blocks[0].first.weight, given.blocks[0].first.weight)
    assert torch.equal(own.to_grid.weight, given.to_grid.weight)
    assert "48 latents of the same images" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["prepare/images.npy", "glo/latents.npy", "glo/decoder.safetensors"])
def test_a_run_that_is_not_there_is_refused(earlier: tuple[str, GloResult], missing: str):
    folder, _ = earlier
    (Path(folder) / missing).unlink()
    with pytest.raises(GlannError, match=f"glo.start_from: {folder}: no {missing}; name the folder data"):
        load_earlier(folder, 8)


def test_a_run_that_does_not_fit_is_refused(earlier: tuple[str, GloResult], shapes: np.ndarray):
    folder, _ = earlier
    with pytest.raises(GlannError, match=r"but glo\.latent_dim is 16; set it to 8"):
        load_earlier(folder, 16)
    with pytest.raises(GlannError, match=r"another prepare\.channels"):
        start_from(load_earlier(folder, 8), shapes[..., :1], fresh(16))
