"""What a training of the second pipeline leaves, also where it fails."""

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
            save_json(made / "result.json", {"images": None, "failed": error.what})
