"""Errors that are meant for users."""

from pathlib import Path


class GlannError(Exception):
    """An error that the user can fix. Its text is one line: where, what is wrong, what to do."""

    status = 1


class DamagedFileError(GlannError):
    """A file whose content is not what was written there.

    Parameters
    ----------
    path
        The file.
    what
        What is wrong with it.
    """

    def __init__(self, path: str | Path, what: str):
        super().__init__(f"{path}: {what}")
        self.path = Path(path)


class DivergedError(GlannError):
    """A training whose loss went wrong.

    Parameters
    ----------
    what
        What went wrong, and at which step.
    advice
        What to do.
    """

    def __init__(self, what: str, advice: str):
        super().__init__(f"{what}; {advice}")
        self.what = what
