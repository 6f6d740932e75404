"""A step of the regression in IMLE (arXiv:1809.09087)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glann.imle.matching import Matching
from glann.imle.settings import Imle
from glann.networks.mappings.network import MappingNetwork
from glann.runtime.processes import data_parallel
from glann.training.batches import Inputs
from glann.training.course import Batch
from glann.training.optimization import MovingAverage, step


@dataclass
class ImleStep:
    """Maps the matched noise of a batch, compares with its latents, and steps the mapping.

    Attributes
    ----------
    wanted
        This process's latents in unit coordinates, float32 [n, d].
    labels
        Their classes, int64 [n]. None: there are none.
    matching
        Their noise.
    mapping, optimizer, average
        The mapping, its optimiser, and its moving average.
    config
        The `imle` section of params.yaml.
    """

    wanted: Tensor
    labels: Tensor | None
    matching: Matching
    mapping: MappingNetwork
    optimizer: torch.optim.Adam
    average: MovingAverage
    config: Imle

    def __post_init__(self) -> None:
        self.parallel = data_parallel(self.mapping.network)

    def read(self, batch: Batch) -> Inputs:
        """Return what the step of a batch needs."""
        share = self.average.share(batch.step)
        return {"rows": batch.rows, "weight": batch.weight, "rate": batch.rate, "share": share}

    def __call__(self, x: Inputs) -> Tensor:
        """Make the step and return the mean loss of this process's rows, float32 []."""
        rows = x["rows"]
        read = self.mapping.read(
            self.matching.noise[rows], None if self.labels is None else self.labels[rows]
        )
        reached = self.mapping.project(self.parallel(read))
        loss = regression_loss(reached, self.wanted[rows], self.config.loss)
        (loss * x["weight"]).backward()  # the mean over processes is the gradient of the whole batch
        step(self.optimizer, self.config.lr * x["rate"])
        self.average.update(self.mapping, x["share"])
        return loss.detach()


def regression_loss(reached: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Return the mean distance of rows float [b, d], or the mean squared distance.

    If several latents share a noise, "squared" pulls its output to their mean, which resembles none of them
    and is nearer to the centre than they are. "distance" pulls it to their geometric median, and latents far
    away pull no harder than latents nearby.
    """
    squared = (reached - wanted).square().sum(dim=1)
    return squared.mean() if kind == "squared" else (squared + 1e-12).sqrt().mean()
