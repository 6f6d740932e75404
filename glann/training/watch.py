"""Watching a training run: an html page with pictures and the loss, renewed every few minutes."""

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.images.curves import curves
from glann.images.html import figure, png, write_html
from glann.images.png import grid
from glann.images.tensors import to_uint8
from glann.runtime.compute import Execution
from glann.runtime.console import say
from glann.runtime.tensorboard import Events

SHOWN, AT_ONCE = 64, 4  # pictures; those that are drawn at once need less memory than a step
SHARE = 0.005  # of the time, at most, that pages may take
RELOAD = 20  # seconds between two reloads of an open page


class Watch:
    """Writes the page of a run.

    Parameters
    ----------
    path
        The html file.
    title
        What the page shows.
    minutes
        From one page to the next; more if pages take long, so that the run takes at most 0.5 % longer. 0:
        no page.
    decode
        Turns what the trained network returns into pixels, float [b, c, h, w] in [0, 1].
    events
        Folder for losses and pictures in TensorBoard's format. None: none.
    about_losses
        What to say below the curves.

    Attributes
    ----------
    begun
        Whether there is a page.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        minutes: float,
        decode: Callable[[Tensor], Tensor] = lambda x: x,
        events: Path | None = None,
        about_losses: str = "",
    ):
        self.path, self.title, self.minutes = path, title, minutes
        self.about_losses, self.decode = about_losses, decode
        self._next = time.monotonic() + 60 * min(minutes, 0.5) if minutes else float("inf")
        self.begun = False
        self._events = Events(events) if events else None

    def note(self, entry: Mapping[str, float]) -> None:
        """Note the losses of an epoch, whose number is in the entry too."""

        def write(events: Events) -> None:
            for key in entry.keys() - {"epoch"}:
                events.scalar(key, entry[key], int(entry["epoch"]))

        self._log(write)

    def _log(self, write: Callable[[Events], None]) -> None:
        """Write for TensorBoard, if asked for; trouble with it is told once and never stops the run."""
        if self._events is None:
            return
        try:
            write(self._events)
        except Exception as error:
            say(f"compute.tensorboard: {error}; the run goes on without it")
            self._events = None

    def due(self) -> bool:
        """Return whether it is time for a new page."""
        return time.monotonic() >= self._next

    def look(
        self,
        network: nn.Module,
        inputs: Sequence[Tensor],
        history: Sequence[dict[str, float]],
        done: float,
        execution: Execution,
    ) -> None:
        """Write a page; trouble with it is told once and never stops the run.

        Parameters
        ----------
        network, inputs
            What draws, and its arguments, of which the first `SHOWN` rows count. The mode of the network is
            put back.
        history
            Of the run, with a loss per finished epoch.
        done
            Fraction of the training that is done, in [0, 1].
        execution
            Device and precision.
        """
        started = time.monotonic()
        training = network.training
        try:
            network.eval()
            with torch.no_grad(), execution.autocast():
                parts = zip(*(rows[:SHOWN].split(AT_ONCE) for rows in inputs), strict=True)
                images = np.concatenate([to_uint8(self.decode(network(*part)).float()) for part in parts])
            picture = grid(images, 16)
            self._write(picture, history, done)
            self._log(lambda to: to.picture("pictures", picture, len(history)))
        except Exception as error:  # whatever it is, the run is worth more than its page
            say(f"{self.path}: {error}; the run goes on without this page")
            self.minutes = 0
        finally:
            network.train(training)
        if not self.begun and self.minutes:
            say(f"to watch the run, open {self.path} in a browser")
            self.begun = True
        now = time.monotonic()
        self._next = now + max(60 * self.minutes, (now - started) / SHARE) if self.minutes else float("inf")

    def _write(self, picture: NDArray[np.uint8], history: Sequence[dict[str, float]], done: float) -> None:
        lines = {
            key: ([entry["epoch"] for entry in history], [entry[key] for entry in history])
            for key in (history[0] if history else ())
            if key != "epoch"
        }
        reload = "" if done >= 1 else f'<meta http-equiv="refresh" content="{RELOAD}">'
        state = f"{100 * done:.0f} % done" + (f", loss {history[-1]['loss']:g}" if history else "")
        state += f", at {time.strftime('%H:%M:%S')}"
        if done < 1:
            state += f"; a new page follows about every {self.minutes:g} minutes, unless the run has stopped"
        body = [
            f"<p>{escape(state)}</p>",
            figure("pictures", png(picture)),
            figure("losses", curves(lines, "epoch", "loss"), self.about_losses, "curves") if history else "",
        ]
        write_html(self.path, self.title, body, reload)
