"""Reading photographs for a model, and what is written for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from preparing import config, run
from small import small_generator

from glann.errors import GlannError
from glann.projection.photos import load_known, read_photos, save_projection, side_by_side
from glann.projection.projector import Projection
from glann.runtime.compute import Execution
from glann.runtime.files import file_digest
from glann.runtime.npy import save_npy


def photo(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_are_read_as_prepare_reads_them(fit: str, channels: int, tmp_path: Path, cpu: Execution):
    (tmp_path / "in").mkdir()
    for i in range(3):
        photo(tmp_path / f"in/{i}.png", i)
    settings = {"fit": fit, "channels": channels, "background": [10, 20, 30], "resolution": 16}
    images, holdout, _ = run(config("folder", tmp_path / "in", holdout=2, **settings), tmp_path / "out")
    origin = {"fit": fit, "background": [10, 20, 30]}
    model = small_generator(cpu, channels, **origin).decoder.architecture
    names, pictures = read_photos([tmp_path / "in"], model)
    assert names == ["0.png", "1.png", "2.png"]
    prepared = {image.tobytes() for image in (*images, *holdout)}
    assert {picture.tobytes() for picture in pictures} == prepared
    names, one = read_photos([tmp_path / "in/1.png"], model)
    assert names == ["1.png"] and np.array_equal(one, pictures[1:2])


def test_what_is_no_picture_is_refused_by_name_and_skipped_in_a_folder(
    tmp_path: Path, cpu: Execution, capsys: pytest.CaptureFixture[str]
):
    model = small_generator(cpu).decoder.architecture
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(GlannError, match=r"bad\.png: not an image file; name a picture"):
        read_photos([tmp_path / "bad.png"], model)
    with pytest.raises(GlannError, match=r"gone\.png: No such file or directory"):
        read_photos([tmp_path / "gone.png"], model)
    with pytest.raises(GlannError, match="no pictures there"):
        read_photos([tmp_path], model)
    photo(tmp_path / "good.png")
    names, _ = read_photos([tmp_path], model)
    assert names == ["good.png"] and "bad.png: not an image file; skipped" in capsys.readouterr().err


def test_what_was_trained_on_is_known_only_to_its_own_model(tmp_path: Path, cpu: Execution):
    generator = small_generator(cpu)
    model = generator.decoder.architecture
    assert load_known(tmp_path, model) is None
    save_npy(tmp_path / "prepare/images.npy", np.zeros((5, 16, 16, 3), np.uint8))
    save_npy(tmp_path / "prepare/holdout.npy", np.zeros((2, 16, 16, 3), np.uint8))
    save_npy(tmp_path / "glo/latents.npy", np.ones((5, 8), np.float32))
    assert load_known(tmp_path, model) is None  # latents of another model
    own = model.model_copy(update={"latents": file_digest(tmp_path / "glo/latents.npy")})
    known = load_known(tmp_path, own)
    assert known is not None and (len(known.images), len(known.holdout), len(known.latents)) == (5, 2, 5)


def test_what_was_found_is_written_for_each_photograph(tmp_path: Path):
    pictures = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), np.uint8)
    found = Projection(
        torch.eye(10),
        255 - pictures,
        np.arange(10, dtype=np.float32),
        np.linspace(0, 1, 10, dtype=np.float32),
        [False] * 9 + [True],
    )
    names = [f"{i}.jpg" for i in range(10)]
    save_projection(tmp_path / "out", names, pictures, found)
    entries = json.loads((tmp_path / "out/projection.json").read_text())
    assert [entry["file"] for entry in entries] == names
    assert entries[3] == {"file": "3.jpg", "distance": 3.0, "nearer": 0.333, "foreign": False}
    assert entries[9]["foreign"] is True
    assert np.array_equal(np.load(tmp_path / "out/latents.npy"), np.eye(10, dtype=np.float32))
    assert len([*(tmp_path / "out/reconstructions").iterdir()]) == 10
    one = np.asarray(Image.open(tmp_path / "out/reconstructions/00004.png"))
    assert np.array_equal(one, 255 - pictures[4])
    picture = np.asarray(Image.open(tmp_path / "out/projection.png"))
    assert np.array_equal(picture, side_by_side(pictures, 255 - pictures))
    for i in (0, 9):  # photographs are in rows 0 and 2, what was drawn below them; all 8 times as large
        top, left = 2 + 260 * (i // 8), 2 + 130 * (i % 8)
        assert np.array_equal(picture[top : top + 128 : 8, left : left + 128 : 8], pictures[i])
        assert np.array_equal(picture[top + 130 : top + 258 : 8, left : left + 128 : 8], 255 - pictures[i])
