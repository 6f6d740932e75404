"""Digests of the running code, taken before a file can be edited during the run."""

import hashlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
NO_TRAINING = ("cli", "editing", "export", "inputs", "page", "peers", "projection")
"""Folders of this package that training the model does not use."""


def digests(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of every Python file below a folder, except hidden ones (of editors)."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.py"))
        if not path.name.startswith(".") and path.is_file()
    }


def changed(before: dict[Path, str]) -> list[Path]:
    """Return the files in `before` that this process has imported and that have changed since."""
    imported = {
        Path(file) for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))
    }
    return [
        path
        for path, digest in before.items()
        if path in imported
        and (not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest)
    ]


AT_START = digests(PACKAGE)
"""The files of this package when it was first imported."""


def digests_of_stage(stage: str, stages: tuple[str, ...]) -> list[str]:
    """Return the digests of a stage's code: all folders but those of other stages and `NO_TRAINING`.

    For a name that is none of `stages`, as a library user may choose, no folder is left out.

    Modules at the top level, such as the command line and presets, are not part of a stage.
    """
    others = [*NO_TRAINING, *(other for other in stages if other != stage)] if stage in stages else []
    parts = ((path.relative_to(PACKAGE).parts, digest) for path, digest in AT_START.items())
    return [digest for path, digest in parts if len(path) > 1 and path[0] not in others]
