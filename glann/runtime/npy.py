"""Arrays in .npy files: read, written block by block, and checked."""

import hashlib
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glann.errors import DamagedFileError, GlannError
from glann.runtime.files import check_file, file_digest, replacing

DIGEST_BYTES = 2**24  # of an array, read at once


def save_npy(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as .npy."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_npy(path: str | Path, mmap: bool = False) -> NDArray[Any]:
    """Read an .npy array of numbers; with `mmap`, pages are read when touched."""
    check_file(path)
    with Path(path).open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            raise DamagedFileError(path, "not an .npy file")
    try:
        # A map is never larger than its file, whatever the header says.
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # numpy's parser of headers raises anything at all
        reason = " ".join(str(error).split())[:150]
        raise DamagedFileError(path, f"not an .npy array of numbers ({reason})") from None
    if array.dtype.kind not in "biuf":
        raise GlannError(f"{path}: not an .npy array of numbers, but of {array.dtype}")
    return array if mmap else np.array(array)


class NpyWriter:
    """An .npy file of uint8 that grows block by block, so that it needs neither memory nor a known length.

    A context manager: on leaving it, the header is given the number of rows that were written.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.count = 0
        """rows written"""
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
        """Write rows, uint8 [b, *shape], behind those that are there."""
        self._file.write(np.ascontiguousarray(rows).data)
        self.count += len(rows)

    def fileno(self) -> int:
        """Return the number by which the system knows the file."""
        return self._file.fileno()

    def _write_header(self) -> None:
        # numpy pads its headers, so that the number of rows can be corrected in place.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def digest_of_rows(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's numbers, row after row in C order; a map is read in blocks."""
    digest = hashlib.sha256()
    rows = max(1, DIGEST_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start : start + rows]).data)
    return digest.hexdigest()


def check_rows(path: str | Path, array: NDArray[Any], digest: str) -> None:
    """Raise `DamagedFileError` unless the rows of an array read from `path` have this digest."""
    if digest_of_rows(array) != digest:
        raise DamagedFileError(path, "damaged: its rows are not those that were written (sha256 differs)")


def load_latents(path: str | Path, sha256: str = "") -> Tensor:
    """Read latents from an .npy file of floats [n, d] as float32.

    Parameters
    ----------
    path
        The file.
    sha256
        Of the whole file, in hexadecimal; "" if any file will do.

    Raises
    ------
    GlannError
        If the file is missing, damaged, no array of floats, or not two-dimensional.
    """
    array = load_npy(path)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise GlannError(f"{path}: expected floats [n, d], found {array.dtype} {list(array.shape)}")
    if sha256 and file_digest(path) != sha256:
        raise DamagedFileError(
            path, "damaged: it is not the file that was made with the decoder (sha256 differs)"
        )
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
