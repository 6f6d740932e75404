"""What goes wrong between here and the Hugging Face Hub, in one line with what to do."""

from textwrap import shorten

TOKENS = "https://huggingface.co/settings/tokens"
REASONS = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it to reach the Hub",
    "RevisionNotFoundError": "has no such revision; name a branch, a tag or a commit of this repository",
    "RemoteEntryNotFoundError": "has no generator.safetensors; name a repository that glann has published",
    "GatedRepoError": "access is restricted; ask for it on the repository's page, and run: hf auth login",
    "RepositoryNotFoundError": (
        "no such repository on the Hub, or a private one; check the name, or run: hf auth login"
    ),
}
"""What to say, by the name of an error of huggingface_hub."""
WRAPPERS = ("LocalEntryNotFoundError", "RuntimeError")
"""Errors that say less than the one that caused them."""


def reason(error: BaseException, endpoint: str) -> str:
    """Return what went wrong, and what to do.

    Parameters
    ----------
    error
        An error of huggingface_hub, or of what it uses.
    endpoint
        The address of the Hub.
    """
    while type(error).__name__ in WRAPPERS and error.__cause__:
        error = error.__cause__
    for kind in type(error).__mro__:  # from the error's own class to more general ones
        if kind.__name__ in REASONS:
            return REASONS[kind.__name__]
    if response := getattr(error, "response", None):
        return _answered(response.status_code, _short(getattr(error, "server_message", None) or ""))
    why = _short(str(error)) or type(error).__name__
    if type(error).__module__.startswith("http"):  # httpx, or its successor
        return f"could not reach {endpoint} ({why}); check the network, and try again"
    return why


def _answered(status: int, message: str) -> str:
    said = f" ({message})" if message else ""
    if status == 401:
        return f"you are not logged in, or your token is not valid{said}; run: hf auth login"
    if status == 403:
        todo = f"create one with write access at {TOKENS}, and run: hf auth login"
        return f"your token does not allow this{said}; {todo}"
    return f"the Hub answered {status}{said}; try again later"


def _short(text: str) -> str:
    return shorten(text, 200, placeholder=" ...")
