"""Writing files so that they appear whole or not at all: to a temporary name, fsynced, renamed."""

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError

from glann.errors import DamagedFileError, GlannError

STAGES = ("prepare", "glo", "imle", "sample", "evaluate")
"""The stages in their order; each has a folder below data/."""
UNFINISHED = ".unfinished-"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success fsync and rename it, otherwise remove it."""
    path = Path(path)
    # The temporary name keeps the suffix, by which writers such as Pillow choose the format.
    stem = os.fsdecode(os.fsencode(path.stem)[:80])  # file names may have 255 bytes
    temporary = path.with_name(f".{stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        with _naming(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # some writers create files that others cannot read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # there is nothing to remove if it could not be created
            temporary.unlink()


@contextmanager
def all_or_none(folder: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a new folder; on success its content replaces what has the same names in `folder`.

    A killed process leaves `folder` as it was, except for a hidden folder that the next run removes.

    Parameters
    ----------
    folder
        Created if it does not exist.
    check
        Called before anything is replaced; if it raises, nothing is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{UNFINISHED}*"):
        pid = left.name.removeprefix(UNFINISHED).split("-")[0]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):  # another process may be working here
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
    """Name the final path in write errors that name the temporary path or no path (as for a full disk)."""
    try:
        yield
    except GlannError as error:
        if str(temporary) not in str(error):
            raise
        raise GlannError(str(error).replace(str(temporary), str(path))) from None
    except SafetensorError as error:
        why = re.sub(r"^.*I/O error: | at path .*$", "", str(error))  # it contains a temporary name
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
    """Refuse a path that cannot be written to, before the work begins.

    It tries the nearest existing folder above the path, and leaves nothing behind.

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
    """Refuse a folder, which may not exist yet, if no file can be written there."""
    try:
        with tempfile.TemporaryFile(dir=next(p for p in (folder, *folder.parents) if p.exists())):
            pass
    except OSError as error:
        raise GlannError(f"{wanted}: could not be written ({error.strerror or error})") from None


def check_file(path: str | Path) -> None:
    """Refuse a path at which there is no file; for outputs of a stage, say how to make them."""
    if not Path(path).is_file():
        what = "a folder, not a file" if Path(path).is_dir() else "no such file"
        raise GlannError(f"{path}: {what}{_again(path)}")


def _again(path: str | Path) -> str:
    """Return what to do about a missing file: `dvc repro` makes everything below data/<stage>/."""
    parts = Path(path).parts
    return "; run: dvc repro" if parts[:1] == ("data",) and parts[1:2] and parts[1] in STAGES else ""


def save_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented json; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read a json file."""
    check_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"not a json file ({str(error)[:150]})") from None


def cache_folder() -> Path:
    """Return the folder for what can be downloaded or computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glann"


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
