"""The prepare stage: images become two arrays of equal squares, for training and for evaluation."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glann.errors import GlannError
from glann.images.png import grid, save_png
from glann.prepare.reading import BYTES_PER_PIXEL, Pixels, decode_all
from glann.prepare.repeats import Repeats, write_review
from glann.prepare.settings import Prepare
from glann.prepare.sources import Source, find_images
from glann.prepare.workers import in_order
from glann.runtime.compute import cores
from glann.runtime.console import say
from glann.runtime.files import all_or_none, save_json
from glann.runtime.memory import available
from glann.runtime.npy import NpyWriter
from glann.runtime.progress import progress
from glann.runtime.randomness import stream_seed

PREVIEW = 64  # images
FILES = ("folder", "npy")  # sources in which the same picture may be there twice
REASONS = 3  # why files were skipped, told in the summary
LEAST_HOLDOUT = 2  # smallest hold-out that the settings allow
WORTH_PROCESSES = 512  # images; fewer are decoded before worker processes have started
MAX_PROCESSES = 32  # more would decode faster than this process can write
PROCESS_BYTES = 2**28  # memory of an idle worker process
CHUNK_IMAGES, CHUNK_BYTES = 32, 2**22  # the most that a worker process sends at once


def prepare(config: Prepare, seed: int, folder: Path, processes: int | None = None) -> None:
    """Write images.npy, holdout.npy, dataset.json, preview.png and review.html: all of them or none.

    Parameters
    ----------
    config
        The `prepare` section of params.yaml.
    seed
        Chooses the images (if there are more than `config.count`), the hold-out images, and the avatars.
    folder
        Where to; it is created if it does not exist.
    processes
        Number of worker processes. Default: one per processor core, or fewer if the largest images need much
        memory. The result does not depend on it.
    """
    source = find_images(config, seed)
    found = len(source.items)
    check_enough(found, config)
    if source.in_random_order:
        order = np.arange(found)
    else:
        order = np.random.default_rng(stream_seed(seed, "prepare", "order")).permutation(found)
    wanted = min(found, config.count or found)
    may_repeat = config.repeats == "leave_out" and config.source in FILES
    repeats = Repeats(config.holdout, wanted, config.mirror)
    bad: dict[int, str] = {}
    with all_or_none(folder) as inside:  # the source may lie in the same folder
        shape = (config.resolution, config.resolution, config.channels)
        with (
            NpyWriter(inside / "images.npy", shape) as train_file,
            NpyWriter(inside / "holdout.npy", shape) as holdout_file,
            progress("prepare", wanted, "images") as advance,
        ):
            train, holdout = _Images(train_file), _Images(holdout_file)
            taken = 0
            # What cannot be used is replaced by the next one in the random order: `count` counts good images.
            for i, pixels in _decoded(source, order, wanted, config, processes):
                if isinstance(pixels, str):
                    bad[i] = pixels
                    continue
                if holdout.count < config.holdout:
                    holdout.append(pixels)
                    if may_repeat:
                        repeats.hold_out(source.name(i), pixels)
                elif may_repeat and repeats.leaves_out(source.name(i), pixels):
                    continue
                else:
                    train.append(pixels)
                    if config.mirror:
                        train.append(np.ascontiguousarray(pixels[:, ::-1]))
                taken += 1
                advance(1)
                if taken == wanted:
                    break
        _check_bad(source, bad, taken + len(repeats.left_out), config)
        if repeats.left_out and not train.count:
            raise GlannError(
                "prepare.repeats: every picture repeats a held-out one, which leaves none to train on; add "
                "other pictures, or set it to keep"
            )
        check_enough(taken, config)
        images, held_out = (np.load(inside / name, mmap_mode="r") for name in ("images.npy", "holdout.npy"))
        save_png(inside / "preview.png", grid(images[:PREVIEW]))
        bad_files = [{"name": source.name(i), "reason": reason} for i, reason in bad.items()]
        bad_files.sort(key=lambda file: file["name"])
        if may_repeat:
            repeats.compare()
        write_review(
            inside / "review.html",
            bad_files,
            repeats if may_repeat else None,
            images[:: 2 if config.mirror else 1],
            held_out,
        )
        dataset = {
            "source": config.source,
            "found": found,
            "requested": config.count,
            "taken": taken,
            "train": train.count,
            "holdout": holdout.count,
            "bad": len(bad),
            "bad_files": bad_files,
            "repeats": repeats.named() if may_repeat else None,
            "channel_means": train.channel_means(),
            "sha256": {"images.npy": train.sha256(), "holdout.npy": holdout.sha256()},
        }
        save_json(inside / "dataset.json", dataset)
    say(_summary(dataset, bad))


def _summary(dataset: Mapping[str, Any], bad: Mapping[int, str]) -> str:
    """Say in one line what was taken, and what was not."""
    text = f"prepare: {dataset['train']:,} training images and {dataset['holdout']:,} held out"
    repeats = dataset["repeats"] or {"left_out": [], "among_training": []}
    left_out, kept = (len(repeats[kind]) for kind in ("left_out", "among_training"))
    if bad:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(bad.values()).most_common(REASONS))
        more = ", ..." if len(set(bad.values())) > REASONS else ""
        text += f"; {len(bad):,} skipped: {reasons}{more}"
    if left_out:
        text += f"; {left_out:,} left out, since they repeat a held-out picture"
    if kept:
        text += f"; {kept:,} of those in training repeat another one"
    if bad or left_out or kept:
        text += "; see data/prepare/review.html"
    if dataset["requested"] and dataset["taken"] < dataset["requested"]:
        text += f"; prepare.count asks for {dataset['requested']:,}, but there are only {dataset['taken']:,}"
    return text


class _Images:
    """One of the two arrays while it is written, and its entries in dataset.json."""

    def __init__(self, file: NpyWriter) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._sums: NDArray[np.uint64] | int = 0
        self._pixels = 0

    @property
    def count(self) -> int:
        return self._file.count

    def append(self, image: Pixels) -> None:
        self._file.append(image[None])
        self._digest.update(image.data)
        self._sums = self._sums + image.sum((0, 1), dtype=np.uint64)
        self._pixels += image.shape[0] * image.shape[1]

    def sha256(self) -> str:
        """Return what `digest_of_rows` returns for the array."""
        return self._digest.hexdigest()

    def channel_means(self) -> list[float]:
        """Return the mean of each channel, 0 to 1."""
        return [int(channel) / (255 * self._pixels) for channel in np.atleast_1d(self._sums)]


def check_enough(images: int, config: Prepare) -> None:
    """Refuse a number of images that leaves none for training."""
    if images > config.holdout:
        return
    ways = ["lower prepare.holdout"] * (images > LEAST_HOLDOUT)
    ways += ["add images"] * (config.source in ("folder", "npy"))
    raise GlannError(
        f"prepare.holdout: {config.holdout} images are to be held out, but there are only {images}, "
        f"which leaves none to train on; {' or '.join(ways) or 'use another prepare.source'}"
    )


def _check_bad(source: Source, bad: Mapping[int, str], good: int, config: Prepare) -> None:
    tried = len(bad) + good
    if len(bad) <= config.max_bad_fraction * tried:
        return
    first = ", ".join(f"{source.name(i)[:80]} ({reason})" for i, reason in [*bad.items()][:3])
    allowed = (
        f"the fraction of {config.max_bad_fraction:g} allowed" if config.max_bad_fraction else "the 0 allowed"
    )
    # Advise a higher limit only if enough images are left then.
    enough = math.ceil(100 * len(bad) / tried) / 100
    raised = f", or raise prepare.max_bad_fraction to {enough:g}" * (good > config.holdout)
    raise GlannError(
        f"prepare.max_bad_fraction: {len(bad)} of {tried} images cannot be used, "
        f"more than {allowed}: {first}{', ...' * (len(bad) > 3)}; {source.remedy([*bad])}{raised}"
    )


def processes_that_fit(pixels: int, free: int) -> int:
    """Return how many worker processes can decode images of `pixels` pixels in `free` bytes of memory."""
    return max(1, min(cores(), MAX_PROCESSES, free // (PROCESS_BYTES + BYTES_PER_PIXEL * pixels)))


def _decoded(
    source: Source, order: NDArray[np.int64], wanted: int, config: Prepare, processes: int | None
) -> Iterator[tuple[int, Pixels | str]]:
    """Yield each item's index, in the given order, with its pixels or the reason why it has none."""
    if processes is None:
        processes = (
            processes_that_fit(source.pixels, available(torch.device("cpu")))
            if wanted >= WORTH_PROCESSES
            else 1
        )
    length = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (config.resolution**2 * config.channels)))
    chunks = [order[start : start + length].tolist() for start in range(0, len(order), length)]
    jobs = ([source.items[i] for i in chunk] for chunk in chunks)
    decode = partial(decode_all, decode=source.decode, config=config)
    with closing(in_order(decode, jobs, processes)) as results:
        for chunk, pixels in zip(chunks, results, strict=False):
            yield from zip(chunk, pixels, strict=True)
