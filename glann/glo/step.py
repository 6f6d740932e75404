"""A step of GLO (arXiv:1707.05776)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.glo.latents import LatentNoise, LatentTable
from glann.glo.losses import ReconstructionLoss
from glann.glo.settings import Glo
from glann.images.tensors import to_float
from glann.runtime.compute import Execution
from glann.runtime.processes import data_parallel
from glann.runtime.randomness import stream
from glann.training.batches import Inputs
from glann.training.course import Batch
from glann.training.optimization import MovingAverage, step


@dataclass
class GloStep:
    """Decodes the latents of a batch, compares, and steps decoder and latents.

    Attributes
    ----------
    images
        This process's images, uint8 [n, h, h, c]; may be memory-mapped.
    table, perturb
        Their latents, and the noise on them.
    decoder, optimizer, average
        The decoder, its optimiser, and its moving average.
    loss_of
        The reconstruction loss.
    config, seed, execution
        As for `train_glo`.
    """

    images: NDArray[np.uint8]
    table: LatentTable
    perturb: LatentNoise
    decoder: nn.Module
    optimizer: torch.optim.Adam
    average: MovingAverage
    loss_of: ReconstructionLoss
    config: Glo
    seed: int
    execution: Execution

    def __post_init__(self) -> None:
        self.parallel = data_parallel(self.decoder)

    def read(self, batch: Batch) -> Inputs:
        """Read the images of a batch, and draw what is random in its step."""
        return {
            "rows": batch.rows,
            "images": torch.from_numpy(np.asarray(self.images[batch.rows.numpy()])),
            "weight": batch.weight,
            "rate": batch.rate,
            "share": self.average.share(batch.step),
            **self.perturb.draw(batch.rows, batch.step),
            **self.loss_of.draw(stream(self.seed, "glo", batch.step, "loss"), batch.done),
        }

    def __call__(self, x: Inputs) -> Tensor:
        """Make the step and return the mean loss of this process's rows, float32 []."""
        rows, targets = x["rows"], to_float(x["images"])
        latents = self.table.rows(rows)
        with self.execution.autocast():
            decoded = self.parallel(self.perturb(latents, x))
            loss = self.loss_of(decoded, targets, rows, x)
        (loss * x["weight"]).backward()  # the mean over processes is the gradient of the whole batch
        step(self.optimizer, self.config.decoder_lr * x["rate"])
        # A latent belongs to one image, so its gradient is scaled back from the mean over the batch.
        self.table.step(rows, latents, self.config.latent_lr * x["rate"], len(rows) / x["weight"])
        self.average.update(self.decoder, x["share"])
        return loss.detach()
