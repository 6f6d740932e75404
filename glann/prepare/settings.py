"""The `prepare` section of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from glann.runtime.settings import LARGEST, PathText, Section

LESS_MEMORY = "lower prepare.resolution, or run on fewer cores, e.g. taskset -c 0 dvc repro"
"""what to advise if memory runs out"""


class Prepare(Section):
    """Where images come from, and how they become two arrays: for training and for evaluation."""

    source: Literal[
        "avatars", "folder", "npy", "mnist", "fashion_mnist", "cifar10", "celeba", "olivetti", "lfw"
    ] = "avatars"
    """avatars (drawn by the program), folder, npy, mnist, fashion_mnist, cifar10, celeba, olivetti or lfw"""
    path: PathText = "data/raw"
    """for folder: the folder, including its subfolders; for npy: the file, [n, h, w] or [n, h, w, c]"""
    labels: PathText | None = None
    """for npy: file with the number of each image's class, integers [n]; null: no classes (with folder,
    subfolders are the classes)"""
    count: int | None = Field(8000, ge=3, le=LARGEST)
    """number of images to use, including the hold-out; null: all of them (avatars need a number)"""
    resolution: int = Field(64, ge=16, le=1024)
    """height and width of the prepared images, in pixels"""
    channels: Literal[1, 3] = 3
    """1: grey, 3: RGB"""
    fit: Literal["crop", "pad"] = "crop"
    """how to make an image square: crop to its centre, or pad with the background"""
    background: list[Annotated[int, Field(ge=0, le=255)]] = Field([255, 255, 255], min_length=3, max_length=3)
    """RGB colour of padding and behind transparent pixels, 0 to 255"""
    holdout: int = Field(1000, ge=2, le=LARGEST)
    """number of images set aside for evaluation and never used in training"""
    mirror: bool = False
    """train also on the mirror image of each training image, which helps if there are few"""
    repeats: Literal["leave_out", "keep"] = "leave_out"
    """training pictures that repeat a held-out one, exactly or nearly: leave_out or keep (folder, npy)"""
    max_bad_fraction: float = Field(0.1, ge=0, le=1)
    """stop if more than this fraction of the files cannot be read"""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.source == "avatars" and self.count is None:
            raise ValueError("count: avatars are drawn on demand, so set their number, e.g. 8000")
        if self.labels is not None and self.source != "npy":
            raise ValueError("labels: only read if prepare.source is npy; set it to null")
        if self.count is not None and self.holdout >= self.count:
            raise ValueError(
                f"holdout: {self.holdout} of {self.count} images leave none to train on; "
                "lower prepare.holdout or raise prepare.count"
            )
        return self
