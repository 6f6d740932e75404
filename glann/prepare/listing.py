"""The files of a folder. Importing this takes no time: it is done with every `dvc repro`."""

import os

NOTES = (b".aae", b".csv", b".db", b".htm", b".html", b".ini", b".json", b".md", b".txt", b".xml", b".xmp")
"""Endings of notes and sidecar files, which lie beside pictures and are none."""


def names_in(root: bytes) -> list[bytes]:
    """List the files below `root` that may be pictures, sorted by the bytes of their relative path.

    Hidden files and `NOTES` are ignored. Linked files count; linked folders do not, since they may lead in
    circles. Dangling links and unreadable
    folders are listed too, so that decoding says what is wrong with them.
    """
    root = os.path.join(root, b"")  # noqa: PTH118 (pathlib has no bytes)
    paths: list[bytes] = []
    unreadable: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(b".")]
        inside = (os.path.join(folder, name) for name in names if not _ignored(name))  # noqa: PTH118
        # Pipes, sockets and devices are not files; opening one may block forever.
        paths += (path for path in inside if os.path.isfile(path) or not os.path.exists(path))  # noqa: PTH110, PTH113
    paths += (error.filename for error in unreadable)
    return sorted(path.removeprefix(root) for path in paths)


def _ignored(name: bytes) -> bool:
    return name.startswith(b".") or name.lower().endswith(NOTES)


def printable(name: bytes) -> str:
    """Turn a file name, which may be any bytes, into one line of text."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
