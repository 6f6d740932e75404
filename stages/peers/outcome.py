"""What a training of the second pipeline leaves, also where it fails."""

import re
from collections.abc import Callable

from glann.errors import DivergedError
from glann.runtime.console import say
from glann.runtime.files import save_json
from stages.frame.running import Stage


def launch(this: Stage, train: Callable[[], None]) -> None:
    """Launch a training; if it diverges, that is its result, and the other rivals can still be compared."""
    try:
        this.launch(train)
    except DivergedError as error:
        say(str(error))
        this.clear()
        with this.outputs() as made:
            save_json(made / "result.json", {"images": None, "failed": lasting(error.what)})


def lasting(what: str) -> str:
    """Return why a training failed, without what differs between two runs of it.

    At which step of an epoch numbers are found not to be finite, and which, depends on when checkpoints are
    due.
    """
    at_epoch = re.sub(r", step \d+", "", what)
    return re.sub(
        r": (the loss is -?(nan|inf)|gradients are so large .*)$", ": the loss is not finite", at_epoch
    )
