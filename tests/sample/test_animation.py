"""Animations."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import small_generator

from glann.errors import GlannError
from glann.runtime.compute import Execution
from glann.sample.animation import check_ending, save_animation, walk


def test_a_walk_begins_at_the_first_seed_and_comes_back_to_it(cpu: Execution):
    generator = small_generator(cpu)
    frames = walk(generator, [3, 5], steps=4)
    assert frames.shape == (8, 16, 16, 3)
    for frame, seed in ((0, 3), (4, 5)):
        assert np.abs(frames[frame].astype(int) - generator.sample(1, seed)[0]).max() <= 1
    steps = np.abs(np.diff(np.concatenate([frames, frames[:1]]).astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < 3 * steps.mean()  # no jumps
    with pytest.raises(GlannError, match="seeds: name at least two"):
        walk(generator, [3])


@pytest.mark.parametrize("ending", ["webp", "gif", "mp4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_all_frames_at_their_rate(ending: str, channels: int, tmp_path: Path):
    frames = np.stack([np.full((16, 16, channels), 20 * i, np.uint8) for i in range(10)])
    path = tmp_path / f"a.{ending}"
    save_animation(path, frames, rate=10, side=64)
    if ending == "mp4":
        from imageio_ffmpeg import count_frames_and_secs, read_frames

        count, seconds = count_frames_and_secs(str(path))
        assert count == 10 and seconds == pytest.approx(1, abs=0.15)
        assert next(read_frames(str(path)))["size"] == (64, 64)
        return
    with Image.open(path) as picture:
        assert picture.n_frames == 10 and picture.size == (64, 64) and picture.info["loop"] == 0
        picture.seek(5)
        picture.load()
        assert picture.info["duration"] == 100
        assert np.abs(np.asarray(picture.convert("L")).astype(int) - 100).max() < 6


def test_other_endings_are_refused(tmp_path: Path):
    with pytest.raises(GlannError, match=r"a\.avi: use a name ending in \.webp, \.gif, \.mp4"):
        check_ending(tmp_path / "a.avi")
