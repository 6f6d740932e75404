"""Files: safetensors, npy and json, written to a temporary name, fsynced, renamed. No pickle anywhere."""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import psutil
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from glann.complaints import one_line
from glann.config import STAGES
from glann.errors import DamagedFileError, GlannError

Network = TypeVar("Network", bound=nn.Module)

UNFINISHED = ".unfinished-"
DIGEST_BYTES = 2**24  # of an array, read at once


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync and rename it, else remove it."""
    path = Path(path)
    # The temporary keeps the suffix: writers such as Pillow choose their format by it.
    stem = os.fsdecode(os.fsencode(path.stem)[:80])  # names have 255 bytes at most
    temporary = path.with_name(f".{stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with _naming(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # some writers would leave a file that nobody else can read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # there is nothing to remove where nothing could be made
            temporary.unlink()


@contextmanager
def all_or_none(folder: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a new folder; on success all that was put there replaces its namesakes in `folder`.

    A process that is killed leaves `folder` as it was, but for one hidden folder that the next one removes.

    Parameters
    ----------
    folder
        Is made if it is not there.
    check
        Called before anything is replaced; if it raises, nothing is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{UNFINISHED}*"):
        pid = left.name.removeprefix(UNFINISHED).split("-")[0]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):  # another may be at work here
            shutil.rmtree(left, ignore_errors=True)
    inside = folder / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with _naming(folder, inside):
            inside.mkdir()
            yield inside
            check()
            for made in sorted(inside.iterdir()):
                target = folder / made.name
                if target.is_dir():
                    shutil.rmtree(target)
                made.replace(target)
    finally:
        shutil.rmtree(inside, ignore_errors=True)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Name the path in errors of writing that name the temporary one, or none, as if a disk is full."""
    try:
        yield
    except GlannError as error:
        if str(temporary) not in str(error):
            raise
        raise GlannError(str(error).replace(str(temporary), str(path))) from None
    except SafetensorError as error:
        why = re.sub(r"^.*I/O error: | at path .*$", "", str(error))  # its own temporary name is in there
        raise GlannError(f"{path}: could not be written ({why})") from None
    except OSError as error:
        why = error.strerror or str(error)
        if error.filename is None:
            raise GlannError(f"{path}: could not be written ({why})") from None
        named = Path(os.fsdecode(error.filename))
        if temporary in (named, *named.parents):
            final = path / named.relative_to(temporary)
            raise GlannError(f"{final}: could not be written ({why})") from None
        if named in path.parents:
            raise GlannError(f"{path}: could not be written ({named}: {why})") from None
        raise


def check_writable(path: str | Path) -> None:
    """Refuse a path that no file could be written to, before the work whose result it is for.

    Nothing is left behind: the nearest folder above it that is there is tried.

    Raises
    ------
    GlannError
        If it is a folder, or the system refuses to write there.
    """
    path = Path(path)
    if path.is_dir():
        raise GlannError(f"{path}: a folder; name a file")
    check_writable_folder(path.parent, path)


def check_writable_folder(folder: Path, wanted: Path) -> None:
    """Refuse a folder, made later if it is missing, that no file could be written to."""
    try:
        with tempfile.TemporaryFile(dir=next(p for p in (folder, *folder.parents) if p.exists())):
            pass
    except OSError as error:
        raise GlannError(f"{wanted}: could not be written ({error.strerror or error})") from None


def _check_file(path: str | Path) -> None:
    if not Path(path).is_file():
        what = "a folder, not a file" if Path(path).is_dir() else "no such file"
        raise GlannError(f"{path}: {what}{_again(path)}")


def _again(path: str | Path) -> str:
    """Return what to do about a file that is not there: `dvc repro` makes what lies below data/<stage>/."""
    house, *rooms = Path(path).parts
    return "; run: dvc repro" if house == "data" and rooms and rooms[0] in STAGES else ""


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented json that ends in a newline; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read a json file."""
    _check_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"not a json file ({str(error)[:150]})") from None


def save_npy(path: str | Path, array: NDArray[Any]) -> None:
    """Write an array as .npy."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_npy(path: str | Path, mmap: bool = False) -> NDArray[Any]:
    """Read an .npy array of numbers; with `mmap`, pages are read when touched."""
    _check_file(path)
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


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], config: Any = None) -> None:
    """Write tensors as safetensors, with `config` (anything json holds) and a digest of all in the header."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: several would be written in no fixed order.
    header = json.dumps({"config": config, "sha256": _digest(on_cpu, config)}, sort_keys=True)
    with replacing(path) as temporary:
        safetensors.torch.save_file(on_cpu, temporary, {"glann": header})


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], Any]:
    """Read a safetensors file.

    Returns
    -------
    tuple
        The tensors by name, and the config that `save_tensors` put in the header (None if there is none).

    Raises
    ------
    GlannError
        If the file is missing, no safetensors file, or not what `save_tensors` wrote there.
    """
    with _opened(path) as file:
        header = _header(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "sha256" in header and header["sha256"] != _digest(tensors, header.get("config")):
        raise DamagedFileError(path, "damaged: its content is not what was written (sha256 differs)")
    return tensors, header.get("config")


def load_config(path: str | Path) -> Any:
    """Read the config in the header of a file of `save_tensors`, and none of the tensors."""
    with _opened(path) as file:
        return _header(file).get("config")


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:150]
        raise DamagedFileError(path, f"not a safetensors file, or a damaged one ({why})") from None


def _header(file: Any) -> dict[str, Any]:
    header = json.loads((file.metadata() or {}).get("glann", "{}"))
    return header if isinstance(header, dict) else {}


def _digest(tensors: Mapping[str, Tensor], config: Any) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_network(path: str | Path, build: Callable[[Any], Network]) -> Network:
    """Read a network: `build` makes it from the header's config, then the tensors are put in.

    The network is built without memory, so a file takes as much as it is long, whatever its config says.

    Raises
    ------
    GlannError
        If the file is missing or damaged, or `build` and the tensors do not go together.
    """
    tensors, config = load_tensors(path)
    try:
        with torch.device("meta"):
            network = build(config)
        for name, expected in network.state_dict().items():
            if name not in tensors or (found := tensors[name]).dtype != expected.dtype:
                raise ValueError(f"{name} is missing, or is not {expected.dtype}")
            if found.shape != expected.shape:
                raise ValueError(f"{name} is {list(found.shape)}, expected {list(expected.shape)}")
            if not found.isfinite().all():
                raise ValueError(f"{name} has numbers that are NaN or infinite")
            if name.endswith("running_var") and (found < 0).any():
                raise ValueError(f"{name} has variances that are negative")
        network.load_state_dict(tensors, assign=True)
    except ValidationError as error:
        raise DamagedFileError(path, f"holds another kind of network ({one_line(error)})") from None
    except (RuntimeError, TypeError, KeyError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedFileError(path, f"does not hold what is expected here ({reason})") from None
    return network
