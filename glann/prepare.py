"""Images from anywhere become two arrays of equal squares: one to train on, one to evaluate with."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glann.config import Prepare
from glann.decoding import Pixels, decode_all
from glann.errors import GlannError
from glann.pictures import grid, save_png
from glann.progress import progress
from glann.sources import Source, find_images
from glann.storage import all_or_none, save_json
from glann.streams import stream_seed
from glann.workers import cores, in_order

PREVIEW = 64  # images
WORTH_PROCESSES = 512  # images; fewer are done before worker processes have started
MAX_PROCESSES = 32  # beyond, this process cannot write as fast as they decode
CHUNK_IMAGES, CHUNK_BYTES = 32, 2**22  # what a worker process sends at once, at most


def prepare(config: Prepare, seed: int, folder: Path, processes: int | None = None) -> None:
    """Write images.npy, holdout.npy, dataset.json and preview.png into `folder`: all four or none.

    Parameters
    ----------
    config
        Which images, and what becomes of them.
    seed
        Chooses the images (where there are more than `config.count`), the hold-out images, and the avatars.
    folder
        Made if it is not there.
    processes
        Worker processes; default: one per processor core. The arrays do not depend on it.
    """
    source = find_images(config, seed)
    found = len(source.items)
    _check_enough(found, config)
    if source.in_random_order:
        order = np.arange(found)
    else:
        order = np.random.default_rng(stream_seed(seed, "prepare", "order")).permutation(found)
    wanted = min(found, config.count or found)
    bad: list[dict[str, str]] = []
    with all_or_none(folder) as inside:
        shape = (config.resolution, config.resolution, config.channels)
        digest = hashlib.sha256()
        with (
            _Rows(inside / "images.npy", shape) as train,
            _Rows(inside / "holdout.npy", shape) as holdout,
            progress("prepare", wanted, "images") as advance,
        ):
            # The next in the random order stands in for a bad file: `count` is a count of good images.
            for i, pixels in _decoded(source, order, wanted, config, processes):
                if isinstance(pixels, str):
                    bad.append({"name": source.name(i), "reason": pixels})
                    continue
                (holdout if holdout.count < config.holdout else train).append(pixels)
                digest.update(pixels.data)
                advance(1)
                if holdout.count + train.count == wanted:
                    break
        taken = holdout.count + train.count
        _check_bad(bad, len(bad) + taken, config)
        _check_enough(taken, config)
        save_png(inside / "preview.png", grid(np.load(inside / "images.npy", mmap_mode="r")[:PREVIEW]))
        dataset = {
            "source": config.source,
            "found": found,
            "requested": config.count,
            "taken": taken,
            "train": train.count,
            "holdout": holdout.count,
            "bad": len(bad),
            "bad_files": sorted(bad, key=lambda file: file["name"]),
            "channel_means": train.channel_means(),
            "sha256": digest.hexdigest(),  # of the hold-out images followed by the training images
        }
        save_json(inside / "dataset.json", dataset)


class _Rows:
    """An .npy file that grows row by row, so that it needs neither memory nor a known length."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.count = 0
        self._shape = shape
        self._sums = np.zeros(shape[-1], np.uint64)
        self._file = path.open("wb")
        self._write_header()

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def append(self, row: Pixels) -> None:
        self._file.write(row.tobytes())
        self._sums += row.sum((0, 1), dtype=np.uint64)
        self.count += 1

    def channel_means(self) -> list[float]:
        """Return the mean of each channel, 0 to 1."""
        pixels = self.count * self._shape[0] * self._shape[1]
        return [int(channel) / (255 * pixels) for channel in self._sums]

    def _write_header(self) -> None:
        # numpy pads its headers, so that the number of rows can be corrected in place.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _check_enough(images: int, config: Prepare) -> None:
    if images <= config.holdout:
        raise GlannError(
            f"prepare.holdout: {config.holdout} images are to be held out and there are only {images}, "
            "which leaves none to train on; lower prepare.holdout or add images"
        )


def _check_bad(bad: Sequence[dict[str, str]], tried: int, config: Prepare) -> None:
    if len(bad) > config.max_bad_fraction * tried:
        first = ", ".join(f"{file['name'][:80]} ({file['reason']})" for file in bad[:3])
        raise GlannError(
            f"prepare.max_bad_fraction: {len(bad)} of {tried} images cannot be used, "
            f"more than the share of {config.max_bad_fraction:g} allowed: {first}{', ...' * (len(bad) > 3)}; "
            "remove or mend them, or raise prepare.max_bad_fraction"
        )


def _decoded(
    source: Source, order: NDArray[np.int64], wanted: int, config: Prepare, processes: int | None
) -> Iterator[tuple[int, Pixels | str]]:
    """Yield for each item, in the given order, its index and its pixels or the reason why there are none."""
    if processes is None:
        processes = min(cores(), MAX_PROCESSES) if wanted >= WORTH_PROCESSES else 1
    length = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (config.resolution**2 * config.channels)))
    chunks = [order[start : start + length].tolist() for start in range(0, len(order), length)]
    jobs = ([source.items[i] for i in chunk] for chunk in chunks)
    decode = partial(decode_all, decode=source.decode, config=config)
    with closing(in_order(decode, jobs, processes)) as results:
        for chunk, pixels in zip(chunks, results, strict=False):
            yield from zip(chunk, pixels, strict=True)
