"""The page that shows a training run while it goes."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL, clusters
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from glann.glo.settings import Glo
from glann.glo.train import train_glo
from glann.imle.fit import fit_imle
from glann.runtime.compute import Execution
from glann.training import watch as module
from glann.training.watch import SHOWN, Watch

OFTEN = 1e-9  # minutes
TINY = {"decoder": {"kind": "infogan", "width": 4}, "latent_dim": 8, "epochs": 3, "batch_size": 16}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def pictures(path: Path) -> dict[str, np.ndarray]:
    found = re.findall(r'<img alt="(\w+)" src="data:image/png;base64,([^"]+)">', path.read_text())
    return {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for name, content in found}


def test_glo_shows_reconstructions_and_the_loss_and_is_not_changed_by_it(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = np.pad(shapes, ((0, 0), (6, 6), (6, 6), (0, 0)))
    alone = train_glo(images, Glo(**TINY), 0, cpu)
    monkeypatch.setattr(module, "SHARE", 1e9)  # let pages take any share of the time
    page = tmp_path / "watch/glo.html"
    watched = train_glo(images, Glo(**TINY), 0, cpu, watch=Watch(page, "glo: reconstructions", OFTEN))
    assert torch.equal(alone.latents, watched.latents) and alone.history == watched.history
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            alone.decoder.state_dict().values(), watched.decoder.state_dict().values(), strict=True
        )
    )
    shown = pictures(page)
    assert set(shown) == {"pictures", "losses"} and shown["pictures"].shape == (3 * 30 + 2, 16 * 30 + 2, 3)
    with torch.no_grad():
        first = watched.decoder(watched.latents[:1])[0].permute(1, 2, 0)
    drawn = torch.from_numpy(shown["pictures"][2:30, 2:30].copy()).float() / 255
    assert (drawn - first).abs().max() < 0.01
    text = page.read_text()
    assert "100 % done, loss" in text and "http-equiv" not in text  # it is finished


def test_imle_shows_decoded_samples(cpu: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SHARE", 1e9)
    reached = []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        reached.append(latents)
        return latents[:, :, None, None].expand(-1, -1, 4, 4)[:, :1].abs()

    watch = Watch(tmp_path / "imle.html", "imle: samples", OFTEN, decode)
    alone = fit_imle(clusters(), SMALL.model_copy(update={"epochs": 2}), 0, cpu)
    watched = fit_imle(clusters(), SMALL.model_copy(update={"epochs": 2}), 0, cpu, watch=watch)
    noise = torch.randn(5, 2)
    assert torch.equal(alone.mapping(noise), watched.mapping(noise))
    assert sum(len(part) for part in reached) % SHOWN == 0 and reached[0].shape[1] == 2
    assert set(pictures(tmp_path / "imle.html")) == {"pictures", "losses"}


def test_pages_come_at_their_time_and_take_a_small_share_of_it(
    clock: list[float], cpu: Execution, tmp_path: Path
):
    seconds = [0.0]

    def slow(x: torch.Tensor) -> torch.Tensor:
        clock[0] += seconds[0]
        return x

    watch = Watch(tmp_path / "a.html", "a run", 2, slow, about_losses="They fall.")
    assert not watch.due()
    clock[0] = 31
    assert watch.due()

    def look() -> None:
        watch.look(torch.nn.Identity(), [torch.rand(3, 1, 8, 8)], [], 0.5, cpu)

    look()
    text = watch.path.read_text()
    assert not watch.due() and 'http-equiv="refresh"' in text
    assert "about every 2 minutes, unless the run has stopped" in text and "They fall." not in text
    clock[0] += 121
    assert watch.due()
    seconds[0] = 3.0
    watch.look(torch.nn.Identity(), [torch.rand(3, 1, 8, 8)], [{"epoch": 1, "loss": 2.0}], 0.5, cpu)
    assert "They fall." in watch.path.read_text()
    clock[0] += 500
    assert not watch.due()  # 3 s are 0.5 % of 600 s
    clock[0] += 101
    assert watch.due()
    assert not Watch(tmp_path / "b.html", "never", 0).due()


def test_whatever_goes_wrong_with_a_page_is_told_once(
    clock: list[float], cpu: Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA out of memory")

    watch = Watch(tmp_path / "a.html", "a run", 2, fail)
    watch.look(torch.nn.Identity(), [torch.rand(3, 1, 8, 8)], [], 0.5, cpu)
    clock[0] = 1e9
    assert not watch.due() and "out of memory; the run goes on without" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_does_not_stop_the_run(
    clock: list[float], cpu: Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    watch = Watch(tmp_path / "file/a.html", "a run", 2)
    network = torch.nn.Dropout()
    clock[0] = 1000
    watch.look(network, [torch.rand(3, 1, 8, 8)], [], 0.5, cpu)
    assert network.training and not watch.begun
    clock[0] = 1e9
    assert not watch.due()
    assert "the run goes on without this page" in capsys.readouterr().err


def test_losses_and_pictures_go_to_tensorboard(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SHARE", 1e9)
    images = np.pad(shapes, ((0, 0), (6, 6), (6, 6), (0, 0)))
    watch = Watch(tmp_path / "glo.html", "glo", OFTEN, events=tmp_path / "events/glo")
    result = train_glo(images, Glo(**TINY), 0, cpu, watch=watch)
    written = EventAccumulator(str(tmp_path / "events/glo"))
    written.Reload()
    losses = {event.step: event.value for event in written.Scalars("loss")}
    assert losses == pytest.approx({entry["epoch"]: entry["loss"] for entry in result.history}, rel=1e-6)
    image = written.Images("pictures")[-1]
    assert (image.height, image.width) == (3 * 30 + 2, 16 * 30 + 2)


def test_trouble_with_tensorboard_is_told_once_and_never_stops_a_run(
    shapes: np.ndarray, cpu: Execution, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = np.pad(shapes, ((0, 0), (6, 6), (6, 6), (0, 0)))
    watch = Watch(tmp_path / "glo.html", "glo", 0, events=tmp_path)
    with Path("/dev/full").open("wb", buffering=0) as full:
        assert watch._events
        watch._events._records = RecordWriter(full)
        result = train_glo(images, Glo(**TINY), 0, cpu, watch=watch)
    said = capsys.readouterr().err
    assert len(result.history) == 3
    assert said.count("No space left on device; the run goes on without it") == 1
