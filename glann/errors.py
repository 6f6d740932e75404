"""The one error meant for people, and how a program ends on it."""

from pathlib import Path


class GlannError(Exception):
    """A mistake the user can mend; its text is one line: where, what is wrong, what to do."""

    status = 1


class DamagedFileError(GlannError):
    """A file whose content is not what a stage wrote there, or cannot be.

    Parameters
    ----------
    path
        The file.
    what
        What shows it.
    """

    def __init__(self, path: str | Path, what: str):
        super().__init__(f"{path}: {what}")
        self.path = Path(path)
