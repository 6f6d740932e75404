"""Which code is running: digests of the modules, taken before any of them can be edited under a run."""

import hashlib
import sys
from pathlib import Path


def digests(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of every Python file below a folder; hidden ones are editors' own."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.py"))
        if not path.name.startswith(".") and path.is_file()
    }


def changed(before: dict[Path, str]) -> list[Path]:
    """Return the files among `before` that this process has imported and that are no longer the same."""
    imported = {
        Path(file) for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))
    }
    return [
        path
        for path, digest in before.items()
        if path in imported
        and (not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest)
    ]


AT_START = digests(Path(__file__).parent)
"""This package when it was first imported."""
