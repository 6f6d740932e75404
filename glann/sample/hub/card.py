"""The model card: what a generator draws, how good it is, how it was trained, and how to use it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glann.runtime.files import load_json
from glann.sample.generator import Generator
from glann.sample.hub.files import FILES

ROWS = {"train": "training images", "reconstructions": "reconstructions", "glann": "GLANN samples"}
COLUMNS = {
    "frechet": "Fréchet ↓",
    "kid": "KID ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "coverage": "coverage ↑",
    "sharpness": "sharpness → 1",
}
MOST_NAMED = 20  # classes
LARGEST = 1e12  # metric; anything beyond is damage
ANYONE = "USER/NAME"  # stands for the name of a repository that is not known yet


def card(generator: Generator, data: Path | None, files: Mapping[str, bytes], repo_id: str | None) -> str:
    """Return the model card as markdown, without its metadata.

    Parameters
    ----------
    generator
        The generator.
    data
        The folder data of the training, for the number of images and the metrics; or None.
    files
        The result of `published`.
    repo_id
        The name of the repository, such as "user/faces"; None if it is not known yet.
    """
    name = repo_id or ANYONE
    parts = [
        f"# {_plain(name.rpartition('/')[2]) if repo_id else 'A GLANN generator'}",
        _about(generator, data),
    ]
    if "grid.png" in files:
        parts += ["![samples](grid.png)", "*Samples, not hand-picked.*"]
    parts += ["## Use", USE.format(name=name, channels=generator.shape[2])]
    if generator.classes:
        parts.append("To choose a class, add `--class NAME`, or `class_name=` in Python.")
    if data and "metrics.json" in files:
        parts += ["## Metrics", *_metrics(load_json(data / FILES["metrics.json"]))]
    if "params.yaml" in files:
        text = files["params.yaml"].decode()
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        folded = f"<details>\n<summary>params.yaml</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"
        parts += [
            "## Training",
            "The settings of the run, without paths and without those that do not affect the result.",
            folded,
        ]
    parts += ["## Limits", LIMITS + (RESIDUALS if generator.mapping.architecture.anchors else "")]
    return "\n\n".join(parts) + "\n"


def _about(generator: Generator, data: Path | None) -> str:
    size, _, channels = generator.shape
    counted = ""
    if data and (data / "prepare/dataset.json").is_file():
        about = load_json(data / "prepare/dataset.json")
        count = about.get("train") if isinstance(about, dict) else None
        counted = f"{count:,} " if isinstance(count, int) else ""
    networks = (generator.mapping, generator.decoder)
    weights = sum(weight.numel() for network in networks for weight in network.parameters())
    classes = ""
    if generator.classes:
        names = ", ".join(_plain(name) for name in generator.classes[:MOST_NAMED])
        more = ", ..." if len(generator.classes) > MOST_NAMED else ""
        classes = f" One of {len(generator.classes)} classes can be chosen: {names}{more}."
    return (
        f"Draws {'grey' if channels == 1 else 'RGB'} images of {size} × {size} pixels. It was trained on "
        f"{counted}images by [GLANN](https://arxiv.org/abs/1812.08985), without a discriminator: first a "
        "decoder together with one latent per training image (GLO), then a mapping from noise to latents "
        f"(IMLE). Noise of {generator.mapping.architecture.noise_dim} numbers becomes a latent of "
        f"{generator.decoder.architecture.latent_dim}, and this becomes an image. The two networks have "
        f"{weights:,} weights.{classes}"
    )


def _metrics(metrics: Any) -> list[str]:
    """Return what the metrics say, and the table."""
    metrics = metrics if isinstance(metrics, dict) else {}
    rows = {name: row for name, row in metrics.items() if isinstance(row, dict) and name != "classes"}
    columns = [key for key in COLUMNS if any(key in row for row in rows.values())]
    count, reference, features = (
        _plain(metrics.get(key, "?")) for key in ("count", "reference_count", "features")
    )
    head = (
        f"Each row compares {count} images with {reference} hold-out images, which were never used in "
        f"training, by {features} features. The row of the training images is what a perfect generator would "
        "reach. Compare models only by the same features and with the same hold-out images."
    )
    lines = [["", *(COLUMNS[key] for key in columns)], ["---", *("---:" for _ in columns)]]
    for name, row in rows.items():
        label = ROWS.get(name) or f"GLO + {_plain(name.removeprefix('glo_'))}, instead of IMLE"
        lines.append([label, *(_number(row.get(key)) for key in columns)])
    return [head, "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def _number(value: Any) -> str:
    number = isinstance(value, int | float) and abs(value) < LARGEST
    return f"{value:.4g}" if number else "–"


def _plain(value: Any) -> str:
    """Return a value as a few words in which markdown and html see nothing special."""
    return re.sub(r"([!-+/;-@\[-`{-~])", r"\\\1", " ".join(str(value).split())[:60])


USE = """\
```bash
pip install '.[hub]'  # in a clone of glann
glann sample --generator hf://{name} --out samples.png
```

```python
import glann

generator = glann.Generator.from_pretrained("{name}")
images = generator.sample(16, seed=7)  # uint8 [16, h, w, {channels}]
glann.save_images(images, "samples.png")
```

The file with the weights is safetensors: nothing is unpickled."""
LIMITS = """\
- The model draws only what its training images show.
- A model of few images may reproduce some of them. Compare samples with the training images before you
  publish any.
- If there are people in the training images, samples may resemble them. Do not present samples as pictures of
  real people, and do not identify anybody by them."""
RESIDUALS = """
- The file also holds differences between training latents and their matches (`imle.residuals`), so it tells
  more about the training images than the networks alone."""
