"""Html pages that need no other file and no network."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glann.images.png import as_picture
from glann.runtime.files import replacing

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; }
body { padding: 0 1rem; }
h1, h2 { line-height: 1.2; }
img { max-width: 100%; }
.curves img { width: 32rem; }
.pixels img { image-rendering: pixelated; min-width: min(100%, 34rem); }
.pairs { display: flex; flex-wrap: wrap; gap: 1rem; }
.pairs figure { margin: 0; width: 16rem; overflow-wrap: anywhere; }
.pairs img { min-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figcaption { color: #555; }
figure { margin: 1.5rem 0; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""


def write_html(path: Path, title: str, body: Sequence[str], head: str = "") -> None:
    """Write a page.

    Parameters
    ----------
    path
        The html file.
    title
        Its title, as plain text.
    body
        Its content below the heading, as html.
    head
        More elements of its head, as html.
    """
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *body,
        "</body></html>",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def figure(name: str, png: bytes, caption: str = "", kind: str = "pixels") -> str:
    """Return a picture as html: `name` stands in for it where it is not shown; `kind` is its class."""
    shown = f'<img alt="{escape(name)}" src="data:image/png;base64,{b64encode(png).decode()}">'
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{shown}{text}</figure>'


def png(image: NDArray[np.uint8]) -> bytes:
    """Return uint8 [h, w, c], c = 1 or 3, as the content of a PNG file."""
    file = BytesIO()
    as_picture(image).save(file, "PNG")
    return file.getvalue()
