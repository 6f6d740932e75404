"""Animations: WebP, GIF or MP4 files."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from glann.errors import GlannError
from glann.images.png import as_picture
from glann.runtime.files import replacing
from glann.runtime.randomness import noise_rows
from glann.sample.generator import Generator

ENDINGS = (".webp", ".gif", ".mp4")
QUALITY = 90  # of WebP and MP4, out of 100
STEPS, RATE = 30, 20  # pictures from one sample to the next, and per second
FASTEST_GIF = 50  # pictures per second
SIDE = 256  # px, to which smaller pictures are enlarged


def walk(
    generator: Generator,
    seeds: Sequence[int],
    steps: int = STEPS,
    truncation: float = 1.0,
    class_name: str | None = None,
) -> NDArray[np.uint8]:
    """Draw the way from sample to sample, and back to the first one.

    Parameters
    ----------
    generator
        The trained generator.
    seeds
        Two or more; each stands for the first image of `Generator.sample` with this seed.
    steps
        Images from one sample to the next.
    truncation, class_name
        As in `Generator.sample`.

    Returns
    -------
    NDArray
        uint8 [len(seeds) * steps, h, w, c].
    """
    if len(seeds) < 2:
        raise GlannError("seeds: name at least two, e.g. 1,5,9")
    e = generator.mapping.architecture.noise_dim
    noise = torch.cat([noise_rows(0, 1, e, seed, "sample") for seed in seeds])
    labels = [of for seed in seeds if (of := generator.labels(1, seed, class_name)) is not None]
    ends = (torch.cat(labels), torch.cat(labels).roll(-1)) if labels else None
    # Each part ends where the next one begins, so its last image is left out.
    images = generator.between(noise, noise.roll(-1, dims=0), steps + 1, truncation, ends)[:, :-1]
    return images.reshape(-1, *images.shape[2:])


def seeds_of(text: str) -> list[int]:
    """Return the seeds in a text such as "1, 5, 9".

    Raises
    ------
    GlannError
        If there is something else in it.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 19 for part in parts):
        raise GlannError(f"seeds: {text[:60]}: expected whole numbers separated by commas, e.g. 1,5,9")
    return [int(part) for part in parts]


def save_animation(path: Path, frames: NDArray[np.uint8], rate: float = RATE, side: int = SIDE) -> None:
    """Write frames uint8 [t, h, w, c] as an animation that starts over at its end.

    Parameters
    ----------
    path
        Its ending says which format: .webp, .gif or .mp4.
    frames
        The pictures.
    rate
        Pictures per second.
    side
        Smaller pictures are enlarged, so that their shorter side has about this many pixels.

    Raises
    ------
    GlannError
        If the ending is another one, or if imageio-ffmpeg is missing, which only .mp4 needs.
    """
    check_ending(path, rate)
    pictures = (_enlarged(as_picture(frame), side) for frame in frames)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _save_mp4(temporary, pictures, len(frames), rate)
            return
        more: dict[str, Any] = {"quality": QUALITY} if path.suffix.lower() == ".webp" else {}
        next(pictures).save(
            temporary, save_all=True, append_images=pictures, duration=round(1000 / rate), loop=0, **more
        )


def check_ending(path: Path, rate: float = RATE) -> None:
    """Refuse a file name that stands for no animation, or for one that cannot be written here.

    Raises
    ------
    GlannError
        See `save_animation`.
    """
    if path.suffix.lower() not in ENDINGS:
        raise GlannError(f"--out {path}: use a name ending in {', '.join(ENDINGS)}")
    if path.suffix.lower() == ".gif" and rate > FASTEST_GIF:
        raise GlannError(f"--rate {rate:g}: browsers play a .gif at {FASTEST_GIF} or fewer; lower it")
    if path.suffix.lower() == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401, PLC0415 (an extra)
        except ImportError:
            raise GlannError(
                f"--out {path}: .mp4 needs the package imageio-ffmpeg; run: pip install imageio-ffmpeg, or "
                "use a name ending in .webp"
            ) from None


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    factor = side // min(picture.size)
    if factor < 2:
        return picture
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.BICUBIC)


def _save_mp4(path: Path, pictures: Iterator[Image.Image], count: int, rate: float) -> None:
    from imageio_ffmpeg import count_frames_and_secs, write_frames  # noqa: PLC0415 (an extra)

    first = next(pictures)
    width, height = (2 * (length // 2) for length in first.size)  # its colours need even sides
    writer = write_frames(str(path), (width, height), fps=rate, quality=QUALITY / 10, macro_block_size=2)
    writer.send(None)
    for picture in itertools.chain([first], pictures):
        writer.send(picture.convert("RGB").crop((0, 0, width, height)).tobytes())
    writer.close()
    if count_frames_and_secs(str(path))[0] != count:
        raise GlannError(f"{path}: could not be written (ffmpeg wrote only a part)")
