"""The page itself, built with Gradio."""

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# Gradio reads these when it is imported. Uploads go to a folder of this process, which is removed at its end.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_TEMP_DIR"] = UPLOADS = tempfile.mkdtemp(prefix="glann-page-")
atexit.register(shutil.rmtree, UPLOADS, ignore_errors=True)
import gradio as gr

from glann.errors import GlannError
from glann.images.png import as_picture, grid
from glann.page.model import Drawn, PageModel
from glann.runtime.console import say
from glann.runtime.files import load_json
from glann.sample.animation import save_animation, seeds_of

MOST = 64  # images of a grid
BUTTONS: list[Any] = ["download", "fullscreen"]  # not the one that shares pictures with a web site
GALLERY = 800  # px
SIDE = 192  # px, to which images are enlarged
LARGEST_UPLOAD = "20mb"
CLEANED_EVERY, KEPT_FOR = 600, 3600  # seconds, for files of visitors
WAITING = 100  # people who may wait for their turn
FONT = ["system-ui", "sans-serif"]  # of the reader's computer: the page needs no network
PICTURES = ("comparison.png", "nearest.png", "weakest.png", "glo.png", "imle.png", "prd.png", "novelty.png")


def build(model: PageModel) -> gr.Blocks:
    """Return the page. Directions are found, and hold-out images measured, before it opens."""
    with gr.Blocks(title="GLANN", analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_FOR)) as page:
        gr.Markdown("# GLANN")
        with gr.Tab("Sample"):
            _sample_tab(model, page)
        with gr.Tab("Walk"):
            _walk_tab(model)
        with gr.Tab("Photo"):
            _photo_tab(model)
        with gr.Tab("Model"):
            _model_tab(model)
    return page


def launch(model: PageModel, host: str, port: int, password: str = "") -> tuple[gr.Blocks, str]:
    """Open the page for browsers, and return at once.

    Parameters
    ----------
    model
        What it shows.
    host, port
        The address. 127.0.0.1: only browsers on this computer; 0.0.0.0: all that can reach it. Port 0: any
        that is free.
    password
        What the user "glann" has to enter. Empty: everybody may use the page.

    Returns
    -------
    tuple
        The page, which ``close()`` ends, and its address.

    Raises
    ------
    GlannError
        If the address cannot be used.
    """
    if port and not _is_free(host, port):
        raise GlannError(f"--host {host}, --port {port}: in use, or not of this computer; use another --port")
    model.grid(1, 0, 1.0)  # the first one takes longer
    page = build(model).queue(max_size=WAITING, default_concurrency_limit=2)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or None,
            auth=("glann", password) if password else None,
            share=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=LARGEST_UPLOAD,
            theme=gr.themes.Default(font=FONT, font_mono=["monospace"]),
            footer_links=[],
            ssr_mode=False,
        )
    except Exception as error:  # Gradio, its server and its client raise all kinds
        why = " ".join(str(error).split())[:150]
        raise GlannError(
            f"--host {host}, --port {port}: the page could not be opened there ({why}); use another port; "
            "with a proxy, set NO_PROXY=localhost,127.0.0.1"
        ) from None
    return page, address


def _is_free(host: str, port: int) -> bool:
    try:
        with socket.create_server((host, port)):
            return True
    except (OSError, OverflowError, UnicodeError):
        return False


def _sample_tab(model: PageModel, page: gr.Blocks) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            seed = gr.Number(0, label="seed", precision=0, minimum=0)
            truncation = gr.Slider(0.1, 1.5, 1.0, step=0.05, label="truncation", info="lower: more typical")
            count = gr.Slider(1, MOST, 16, step=1, label="images")
            of_class = _class_choice(model)
            draw = gr.Button("Draw", variant="primary")
            more = gr.Button("More like the chosen one", interactive=False)
            told = gr.Markdown("Click an image to choose it.")
        gallery = gr.Gallery(
            columns=4, height=GALLERY, allow_preview=False, show_label=False, scale=3, buttons=BUTTONS
        )
    shown, chosen = gr.State(), gr.State()

    def show(drawn: Drawn) -> tuple[Any, ...]:
        pictures = [_enlarged(image) for image in drawn.images]
        return pictures, drawn, None, gr.Button(interactive=False), "Click an image."

    def sample(seed: float, truncation: float, count: float, of_class: str) -> tuple[Any, ...]:
        return show(model.grid(_count(count), _whole(seed), truncation, of_class or None))

    def more_like(drawn: Drawn | None, chosen: int | None, seed: float, count: float) -> tuple[Any, ...]:
        if drawn is None or chosen is None or not 0 <= chosen < len(drawn.noise):
            raise GlannError("click an image first")
        return show(model.more_like(drawn, chosen, _count(count), _whole(seed)))

    def choose(event: gr.SelectData) -> tuple[Any, ...]:
        return event.index, gr.Button(interactive=True), f"Image {event.index + 1} is chosen."

    outputs = [gallery, shown, chosen, more, told]
    inputs = [seed, truncation, count, of_class]
    gr.on([page.load, draw.click, seed.submit], _with_messages(sample), inputs, outputs)
    more.click(_with_messages(more_like), [shown, chosen, seed, count], outputs)
    gallery.select(choose, None, [chosen, more, told])


def _walk_tab(model: PageModel) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            seeds = gr.Textbox("0, 1", label="seeds to visit")
            steps = gr.Slider(5, 60, 20, step=1, label="pictures from one to the next")
            truncation = gr.Slider(0.1, 1.5, 1.0, step=0.05, label="truncation")
            of_class = _class_choice(model)
            draw = gr.Button("Walk", variant="primary")
        with gr.Column(scale=3):
            shown = gr.Image(
                label="walk",
                type="filepath",
                show_label=False,
                interactive=False,
                height=300,
                buttons=BUTTONS,
            )
            saved = gr.File(label="animation", interactive=False)

    def walk(seeds: str, steps: float, truncation: float, of_class: str) -> tuple[str, str]:
        frames = model.walk(seeds_of(seeds or ""), max(1, int(steps)), truncation, of_class or None)
        path = Path(tempfile.mkdtemp(dir=UPLOADS)) / "walk.webp"
        save_animation(path, frames)
        return str(path), str(path)

    draw.click(_with_messages(walk), [seeds, steps, truncation, of_class], [shown, saved])


def _class_choice(model: PageModel) -> gr.Dropdown:
    """Return the field for a class; it is not shown if the model has none."""
    classes = model.generator.classes
    choices = [("all classes", ""), *((name, name) for name in classes)]
    return gr.Dropdown(choices, value="", label="class", visible=bool(classes))


def _photo_tab(model: PageModel) -> None:
    try:
        model.prepare_photographs()
    except GlannError as error:  # such as weights that cannot be downloaded; the other tabs need none
        say(f"page: {error}")
        gr.Markdown("Photographs cannot be found in this model; the terminal of the page says why.")
        return
    latent = gr.State()
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            photo = gr.File(label="a photograph", type="filepath", height=120)
            find = gr.Button("Find it in the model", variant="primary")
            told = gr.Markdown("It stays on the computer that runs this page.")
            sliders = [gr.Slider(-4, 4, 0, step=0.1, label=direction.name) for direction in model.directions]
        with gr.Column(scale=3):
            both = gr.Image(
                label="photograph, and what the model draws", interactive=False, height=300, buttons=BUTTONS
            )
            edited = gr.Image(label="edited", interactive=False, height=300, buttons=BUTTONS)

    def find_photo(photo: str | None) -> tuple[Any, ...]:
        if not photo:
            raise GlannError("choose a photograph first")
        try:
            picture, drawn, at, foreign = model.find(Path(photo))
        except GlannError as error:
            raise GlannError(str(error).replace(f"{photo}: ", "this file: ")) from None
        text = "Done; now move the sliders."
        if foreign:
            text = "Unlike anything that the model knows. Crop photographs as those that it was trained on."
        return _enlarged(grid(np.stack([picture, drawn]), 2)), _enlarged(drawn), at, text, *[0] * len(sliders)

    def edit(at: Tensor | None, *strengths: float) -> Any:
        return None if at is None else _enlarged(model.edited(at, list(strengths)))

    find.click(_with_messages(find_photo), [photo], [both, edited, latent, told, *sliders])
    moved = [slider.input for slider in sliders]
    gr.on(moved, _with_messages(edit), [latent, *sliders], edited, trigger_mode="always_last")


def _model_tab(model: PageModel) -> None:
    made = model.generator.decoder.architecture
    gr.Markdown(
        f"Images of {made.size} px, {'grey' if made.channels == 1 else 'RGB'}; latents of {made.latent_dim} "
        f"numbers; decoder {made.config.kind}, width {made.config.width}."
    )
    folder = model.data / "evaluate"
    rows: dict[str, dict[str, Any]] = {}
    with suppress(GlannError, OSError, AttributeError):
        rows = {
            name: row for name, row in load_json(folder / "metrics.json").items() if isinstance(row, dict)
        }
    if not rows:
        gr.Markdown("There are no metrics of this model.")
        return
    classes = rows.pop("classes", {})
    _table("images", rows)
    if classes and all(isinstance(row, dict) for row in classes.values()):
        _table("class", classes)
    for name in PICTURES:
        path = folder / "plots" / name
        with suppress(Exception):  # of whatever kind: the page can do without
            if path.is_file():
                with Image.open(path) as picture:
                    gr.Image(
                        picture.copy(), label=path.stem, interactive=False, buttons=BUTTONS, format="png"
                    )


def _table(heading: str, rows: dict[str, dict[str, Any]]) -> None:
    columns = [*dict.fromkeys(column for row in rows.values() for column in row)]
    table = [[name, *(_short(row.get(column)) for column in columns)] for name, row in rows.items()]
    gr.Dataframe(table, headers=[heading, *columns], interactive=False)


def _with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show errors meant for users on the page, and say others only at the terminal."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except GlannError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            say(f"page: {type(error).__name__}: {' '.join(str(error).split())}")
            raise gr.Error(
                "this did not work; the terminal of the page says why", print_exception=False
            ) from None

    return call


def _whole(value: float | None) -> int:
    if value is None or not 0 <= value < 2**53:
        raise GlannError("the seed should be a whole number, 0 or more")
    return int(value)


def _count(value: float) -> int:
    return min(max(int(value), 1), MOST)


def _short(value: Any) -> Any:
    short = f"{value:.4g}" if isinstance(value, float) else str(value)[:20]
    return float(short) if isinstance(value, float) and isfinite(value) else short


def _enlarged(image: NDArray[np.uint8]) -> Image.Image:
    picture = as_picture(image)
    factor = max(1, SIDE // picture.height)
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
