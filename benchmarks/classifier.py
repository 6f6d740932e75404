"""Compare GLANN and its rivals in the features of a small classifier, which no model has learned from.

It is trained on the classes of the training images, so these must have some. Run it in the folder of a
project, after the pipelines:

python -m benchmarks.classifier
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from glann.errors import GlannError
from glann.evaluate.metrics import frechet_distance, precision_recall
from glann.images.classes import load_classes
from glann.images.tensors import to_float
from glann.params import load_settings
from glann.peers.report import LABELS
from glann.peers.runs import find_runs
from glann.peers.settings import Peers
from glann.runtime.compute import execution
from glann.runtime.npy import load_npy
from glann.runtime.reporting import one_line_errors
from glann.runtime.settings import Compute

EPOCHS, BATCH, LR = 8, 128, 0.001
FEATURES = 64


class Classifier(nn.Module):
    """Two convolutions and a hidden layer, which gives the features.

    Parameters
    ----------
    size, channels
        Of the images, px.
    classes
        Number of classes.
    """

    def __init__(self, size: int, channels: int, classes: int):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * (size // 4) ** 2, FEATURES), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(FEATURES, classes))

    @torch.no_grad()
    def look(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Return features float32 [n, f] and probabilities float32 [n, k] of images uint8 [n, h, w, c]."""
        seen = [self.body(block) for block in blocks(images)]
        return torch.cat(seen), torch.cat([self.head(part).softmax(dim=1) for part in seen])


def blocks(images: NDArray[np.uint8]) -> list[Tensor]:
    """Return images uint8 [n, h, w, c] as float32 [b, c, h, w] in [0, 1]."""
    return [to_float(torch.from_numpy(np.array(images[i : i + 500]))) for i in range(0, len(images), 500)]


def train(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int, seed: int = 0) -> Classifier:
    """Train a classifier on images uint8 [n, h, w, c] and their classes int64 [n]; in evaluation mode."""
    torch.manual_seed(seed)
    model = Classifier(images.shape[1], images.shape[3], classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    known = torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            x = to_float(torch.from_numpy(np.asarray(images[rows.numpy()])))
            optimizer.zero_grad()
            F.cross_entropy(model.head(model.body(x)), known[rows]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="samples of each model")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    on = execution(Compute(device="cpu", threads=given.threads))
    images, holdout = (load_npy(f"data/prepare/{name}.npy", mmap=True) for name in ("images", "holdout"))
    classes = load_classes("data/prepare/classes.json")
    if classes is None:
        raise GlannError("data/prepare: the images have no classes")
    model = train(images, classes.images, len(classes.names))
    reference, guessed = model.look(holdout)
    right = (guessed.argmax(dim=1).numpy() == classes.holdout).mean()
    table = Table("", "seed", "Fréchet ↓", "precision ↑", "recall ↑", "mean confidence")

    def add(name: str, seed: str, drawn: NDArray[np.uint8]) -> None:
        features, sure = model.look(drawn)
        found = (frechet_distance(features, reference), *precision_recall(features, reference))
        confidence = sure.max(dim=1).values.mean().item()
        table.add_row(LABELS[name], seed, *(f"{value:.3f}" for value in (*found, confidence)))

    add("train", "", np.asarray(images[: given.count]))
    for run in find_runs(Path("data/peers/trained"), load_settings("peers/params.yaml", Peers)):
        if not run.failed:
            drawn = run.generator(on).sample(given.count, run.seed_of_samples)
            add(run.model, str(run.seed), drawn)
    Console().print(f"classifier: {right:.1%} of the hold-out right")
    Console().print(table)


if __name__ == "__main__":
    with one_line_errors():
        main()
