"""Arrays in .npy files: reading, writing block by block, checking."""

import hashlib
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glann.errors import DamagedFileError, GlannError
from glann.runtime.files import check_file, file_digest, replacing

DIGEST_BYTES = 2**24  # of an array that are read at once


def save_npy(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as .npy."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_npy(path: str | Path, mmap: bool = False) -> NDArray[Any]:
    """Read an .npy array of numbers; with `mmap`, data is read from disk when it is used."""
    check_file(path)
    with Path(path).open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            raise DamagedFileError(path, "not an .npy file")
    try:
        # A memory map is never larger than the file, whatever the header says.
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy's header parser raises all kinds of errors
        reason = " ".join(str(error).split())[:150]
        raise DamagedFileError(path, f"not an .npy array of numbers ({reason})") from None
    if array.dtype.kind not in "biuf":
        raise GlannError(f"{path}: not an .npy array of numbers, but of {array.dtype}")
    return array if mmap else np.array(array)


class NpyWriter:
    """An .npy file of uint8 that is written block by block, with a length that need not be known before.

    A context manager: on exit, the number of rows is written to the header.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.count = 0
        """number of rows written"""
        self._shape = shape
        self._file = path.open("wb")
        self._write_header()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def append(self, rows: NDArray[np.uint8]) -> None:
        """Append rows, uint8 [b, *shape]."""
        self._file.write(np.ascontiguousarray(rows).data)
        self.count += len(rows)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._file.fileno()

    def _write_header(self) -> None:
        # numpy pads headers, so the number of rows can be corrected in place.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def digest_of_rows(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's data in C order; memory maps are read in blocks."""
    digest = hashlib.sha256()
    rows = max(1, DIGEST_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]).data)
    return digest.hexdigest()


def check_rows(path: str | Path, array: NDArray[Any], digest: str) -> None:
    """Raise `DamagedFileError` if the array read from `path` does not have this digest."""
    if digest_of_rows(array) != digest:
        raise DamagedFileError(path, "damaged: its rows are not the ones that were written (sha256 differs)")


def load_latents(path: str | Path, sha256: str = "") -> Tensor:
    """Read latents from an .npy file of floats [n, d] as float32.

    Parameters
    ----------
    path
        The file.
    sha256
        Expected SHA-256 of the file, in hexadecimal. Default: any file is accepted.

    Raises
    ------
    GlannError
        If the file is missing or damaged, or does not hold a two-dimensional array of floats.
    """
    array = load_npy(path)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise GlannError(f"{path}: expected floats [n, d], found {array.dtype} {list(array.shape)}")
    if sha256 and file_digest(path) != sha256:
        raise DamagedFileError(
            path, "damaged: it is not the file that was written with the decoder (sha256 differs)"
        )
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
