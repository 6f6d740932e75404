"""The prepare stage: images become two arrays of equal squares, for training and for evaluation."""

import hashlib
import math
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glann.errors import GlannError
from glann.images.classes import Classes, numbered, save_classes
from glann.images.png import grid, save_png
from glann.prepare.likeness import Picture, read_all
from glann.prepare.reading import BYTES_PER_PIXEL, Pixels
from glann.prepare.repeats import MOST_COMPARED, Repeats, write_review
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
OWN_PICTURES = ("folder", "npy")  # sources that users fill, so a picture may be there twice
REASONS = 3  # why files were skipped, told in the summary
LEAST_HOLDOUT = 2  # smallest hold-out that the settings allow
WORTH_PROCESSES = 512  # images; fewer are decoded before worker processes have started
MAX_PROCESSES = 32  # more would decode faster than this process can write
PROCESS_BYTES = 2**28  # memory of an idle worker process
CHUNK_IMAGES, CHUNK_BYTES = 32, 2**22  # the most that a worker process sends at once


def prepare(config: Prepare, seed: int, folder: Path, processes: int | None = None) -> None:
    """Write the two arrays, what their rows are, and what to look at: all files or none.

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
    order = np.arange(found) if source.in_random_order else random_order(source, seed)
    wanted = min(found, config.count or found)
    repeats = Repeats(config.holdout, wanted, config.mirror) if compares(config) else None
    with all_or_none(folder) as inside:  # the source may lie in the same folder
        shape = (config.resolution, config.resolution, config.channels)
        with (
            NpyWriter(inside / "images.npy", shape) as train_file,
            NpyWriter(inside / "holdout.npy", shape) as holdout_file,
            closing(_read(source, order, wanted, config, processes)) as pictures,
        ):
            train, holdout = _Images(train_file), _Images(holdout_file)
            bad, rows = _split(pictures, source, wanted, config, train, holdout, repeats)
        left_out = len(repeats.left_out) if repeats else 0
        taken = holdout.count + train.count // (2 if config.mirror else 1)
        _check_bad(source, bad, taken + left_out, config)
        if left_out and not train.count:
            raise GlannError(
                "prepare.repeats: every picture repeats a held-out one, which leaves none to train on; add "
                "other pictures, or set it to keep"
            )
        check_enough(taken, config)
        images, held_out = (np.load(inside / name, mmap_mode="r") for name in ("images.npy", "holdout.npy"))
        save_png(inside / "preview.png", grid(images[:PREVIEW]))
        bad_files = [{"name": source.name(i), "reason": reason} for i, reason in bad.items()]
        bad_files.sort(key=lambda file: file["name"])
        if repeats:
            repeats.compare()
        unmirrored = images[:: 2 if config.mirror else 1]
        write_review(inside / "review.html", bad_files, repeats, unmirrored, held_out)
        names = {array: [source.name(i) for i in items] for array, items in rows.items()}
        save_json(inside / "names.json", names)
        classes = _classes(source, rows)
        save_classes(inside / "classes.json", classes)
        save_json(inside / "repeats.json", repeats.named() if repeats else None)
        dataset = {
            "source": config.source,
            "fit": config.fit,
            "background": config.background,
            "found": found,
            "requested": config.count,
            "taken": taken,
            "train": train.count,
            "holdout": holdout.count,
            "classes": len(classes.names) if classes else 0,
            "bad": len(bad),
            "bad_files": bad_files,
            "channel_means": train.channel_means(),
            "sha256": {"images.npy": train.sha256(), "holdout.npy": holdout.sha256()},
        }
        save_json(inside / "dataset.json", dataset)
    say(_summary(dataset, bad, repeats))


def _split(
    pictures: Iterable[tuple[int, Picture | str]],
    source: Source,
    wanted: int,
    config: Prepare,
    train: "_Images",
    holdout: "_Images",
    repeats: Repeats | None,
) -> tuple[dict[int, str], dict[str, list[int]]]:
    """Share pictures out between the two arrays, until there are `wanted`.

    What cannot be used is replaced by the next one in the random order: `count` counts good images.

    Returns
    -------
    tuple
        By number of the item: why it cannot be used. By array: the number of the item of each row.
    """
    bad: dict[int, str] = {}
    rows: dict[str, list[int]] = {"images": [], "holdout": []}
    with progress("prepare", wanted, "images") as advance:
        taken = 0
        for i, picture in pictures:
            if isinstance(picture, str):
                bad[i] = picture
                continue
            pixels, like = picture
            if holdout.count < config.holdout:
                holdout.append(pixels)
                rows["holdout"].append(i)
                if repeats and like:
                    repeats.hold_out(source.name(i), pixels, like)
            elif repeats and like and repeats.leaves_out(source.name(i), pixels, like):
                continue
            else:
                train.append(pixels)
                rows["images"].append(i)
                if config.mirror:
                    train.append(np.ascontiguousarray(pixels[:, ::-1]))
                    rows["images"].append(i)
            taken += 1
            advance(1)
            if taken == wanted:
                break
    return bad, rows


def _classes(source: Source, rows: Mapping[str, Sequence[int]]) -> Classes | None:
    """Return the classes of the rows of both arrays, or None if there are fewer than two."""
    if source.class_of is None:
        return None
    train, holdout = ([source.class_of(i) for i in rows[array]] for array in ("images", "holdout"))
    return numbered(train, holdout) if len({*train, *holdout}) > 1 else None


def random_order(source: Source, seed: int) -> NDArray[np.int64]:
    """Return the numbers of all items in an order that is random, but the same for the same names.

    It is that of digests of the names. An image that is added takes its place between the others and leaves
    them in their order, so no training image is held out later because others were added.
    """
    key = stream_seed(seed, "prepare", "order")
    digests = (hashlib.sha256(f"{key}/{source.name(i)}".encode()).digest() for i in range(len(source.items)))
    places = [int.from_bytes(digest[:8], "big") for digest in digests]
    return np.argsort(np.array(places, np.uint64), kind="stable")


def _summary(dataset: Mapping[str, Any], bad: Mapping[int, str], repeats: Repeats | None) -> str:
    """Say in one line what was taken, and what was not."""
    text = f"prepare: {dataset['train']:,} training images and {dataset['holdout']:,} held out"
    if dataset["classes"]:
        text += f", of {dataset['classes']:,} classes"
    left_out, kept = (len(repeats.left_out), len(repeats.among_training)) if repeats else (0, 0)
    if bad:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(bad.values()).most_common(REASONS))
        more = ", ..." if len(set(bad.values())) > REASONS else ""
        text += f"; {len(bad):,} skipped: {reasons}{more}"
    if left_out:
        text += f"; {left_out:,} left out, since they repeat a held-out picture"
    if kept:
        compared = "those" if dataset["train"] <= MOST_COMPARED else f"the first {MOST_COMPARED:,}"
        text += f"; {kept:,} of {compared} in training repeat another one"
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


def compares(config: Prepare) -> bool:
    """Return whether repeated pictures are looked for."""
    return config.repeats == "leave_out" and config.source in OWN_PICTURES


def check_enough(images: int, config: Prepare) -> None:
    """Refuse a number of images that leaves none for training."""
    if images > config.holdout:
        return
    ways = ["lower prepare.holdout"] * (images > LEAST_HOLDOUT)
    ways += ["add images"] * (config.source in OWN_PICTURES)
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


def _read(
    source: Source, order: NDArray[np.int64], wanted: int, config: Prepare, processes: int | None
) -> Generator[tuple[int, Picture | str], None, None]:
    """Yield each item's index, in the given order, with its picture or the reason why it has none."""
    if processes is None:
        processes = (
            processes_that_fit(source.pixels, available(torch.device("cpu")))
            if wanted >= WORTH_PROCESSES
            else 1
        )
    length = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (config.resolution**2 * config.channels)))
    chunks = [order[start : start + length].tolist() for start in range(0, len(order), length)]
    jobs = ([source.items[i] for i in chunk] for chunk in chunks)
    read = partial(read_all, decode=source.decode, config=config, compared=compares(config))
    with closing(in_order(read, jobs, processes)) as results:
        for chunk, pictures in zip(chunks, results, strict=False):
            yield from zip(chunk, pictures, strict=True)
