"""Losses and pictures in TensorBoard's format, written at once and without a thread."""

import socket
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glann.errors import GlannError
from glann.runtime.files import check_writable_folder


def check_tensorboard(folder: Path) -> None:
    """Check that there is TensorBoard, and that it could write to `folder`.

    Raises
    ------
    GlannError
        If not.
    """
    if find_spec("tensorboard") is None:
        raise GlannError(
            "compute.tensorboard: the package tensorboard is missing; run: pip install tensorboard, or set "
            "this to null"
        )
    try:
        check_writable_folder(folder, folder)
    except GlannError as error:
        raise GlannError(f"compute.tensorboard: {error}; name a folder that can be written") from None


class Events:
    """Writes one run.

    Parameters
    ----------
    folder
        Created if it does not exist.
    """

    def __init__(self, folder: Path):
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415 (slow, and not always there)
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415
        from torch.utils.tensorboard import summary  # noqa: PLC0415

        self._event, self._summary = Event, summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write a number."""
        self._write(step=step, summary=self._summary.scalar(name, value))

    def picture(self, name: str, pixels: NDArray[np.uint8], step: int) -> None:
        """Write a picture, uint8 [h, w, c]."""
        self._write(step=step, summary=self._summary.image(name, pixels, dataformats="HWC"))

    def _write(self, **content: object) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()
