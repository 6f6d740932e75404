"""Watching what comes from outside the project: folders of pictures, arrays and weights.

DVC itself cannot watch a folder that may hold unreadable files, and it would list all files of a large one.
So a stage that always runs reduces each input to one digest, on which other stages depend. A file's content
is read only if its size or one of its times has changed since it was last read.
"""

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from glann.prepare.listing import names_in
from glann.prepare.settings import Prepare
from glann.runtime.progress import progress

AT_ONCE = 10_000  # files looked up at once


def pictures(config: Prepare, memory: Path) -> dict[str, Any] | None:
    """Return a digest of the pictures in `prepare.path`, or None if nothing is there.

    Parameters
    ----------
    config
        The `prepare` section of params.yaml.
    memory
        A file, made if necessary, that keeps digests from one call to the next.

    Returns
    -------
    dict or None
        "files": their number, and "sha256": the digest of their names and contents; "labels": that of their
        labels, if they have a file. Empty for sources without a path, which never change.
    """
    if config.source == "npy":
        found, labels = of_file(config.path, memory), of_file(config.labels, memory)
        if found is None or labels is None:
            return None
        return found | ({"labels": labels["sha256"]} if labels else {})
    if config.source != "folder":
        return {}
    root = os.fsencode(config.path)
    readable = os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK)  # noqa: PTH112 (pathlib has no bytes)
    names = names_in(root) if readable else []
    return _digest(names, root, memory) if names else None


def of_files(folder: str | None, names: Sequence[str], memory: Path) -> dict[str, Any] | None:
    """Return a digest of files in a folder, as `pictures` does; empty without one, None if one is missing."""
    if folder is None:
        return {}
    if not all(Path(folder, name).is_file() for name in names):
        return None
    return _digest([name.encode() for name in sorted(names)], os.fsencode(folder), memory)


def of_file(path: str | None, memory: Path) -> dict[str, Any] | None:
    """Return a digest of one file, as `pictures` does; empty without a path, None if it is not there."""
    if path is None:
        return {}
    if not Path(path).is_file():
        return None
    (digest,) = _digests([b""], os.fsencode(path), memory)  # its name does not matter, only its content
    return {"files": 1, "sha256": digest}


def _digest(names: Sequence[bytes], root: bytes, memory: Path) -> dict[str, Any]:
    whole = hashlib.sha256()
    for name, digest in zip(names, _digests(names, root, memory), strict=True):
        whole.update(b"%s\0%s\0" % (name, digest.encode()))
    return {"files": len(names), "sha256": whole.hexdigest()}


def _digests(names: Sequence[bytes], root: bytes, memory: Path) -> Iterator[str]:
    """Yield each file's digest; for one that cannot be read, why."""
    root = os.path.abspath(root)  # noqa: PTH100
    with closing(_Memory(memory)) as known, progress("inputs", len(names), "files") as advance:
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            paths = [os.path.join(root, name) if name else root for name in some]  # noqa: PTH118
            before, new = known.between(paths[0], paths[-1]), {}
            for path in paths:
                try:
                    status = os.stat(path)  # noqa: PTH116
                    now = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
                    state, digest = before.get(path, ("", ""))
                    if state != now:
                        digest = _content(path)
                        new[path] = now, digest
                    yield digest
                except OSError as error:
                    yield errno.errorcode.get(error.errno or 0, str(error.strerror))
                advance(1)
            known.add(new)


def _content(path: bytes) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Memory:
    """Digests of files as they were last read, in a database; without one, every file is read again.

    If the database is damaged, locked or read-only, nothing is known, and nothing is remembered.
    """

    def __init__(self, path: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        with suppress(OSError, sqlite3.Error):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=10)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS files "
                "(path BLOB PRIMARY KEY, state TEXT, digest TEXT) WITHOUT ROWID"
            )

    def between(self, first: bytes, last: bytes) -> dict[bytes, tuple[str, str]]:
        """Return what is known of the files from `first` to `last`: state and digest by path."""
        query = "SELECT path, state, digest FROM files WHERE path BETWEEN ? AND ?"
        with suppress(sqlite3.Error):
            if self._connection:
                return {
                    path: (state, digest)
                    for path, state, digest in self._connection.execute(query, (first, last))
                }
        return {}

    def add(self, files: Mapping[bytes, tuple[str, str]]) -> None:
        """Remember files."""
        rows = [(path, *values) for path, values in files.items()]
        with suppress(sqlite3.Error):
            if self._connection and rows:
                with self._connection:
                    self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the database."""
        if self._connection:
            self._connection.close()
