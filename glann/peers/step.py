"""What the training steps of all rivals have in common."""

from abc import ABC, abstractmethod
from collections.abc import Hashable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glann.errors import GlannError
from glann.glo.settings import Loss
from glann.images.tensors import to_float
from glann.networks.decoders.network import DecoderArchitecture, DecoderNetwork
from glann.networks.layers import initialize
from glann.peers.judges import JudgeNetwork, judges_of
from glann.peers.settings import Peer
from glann.runtime.compute import Execution
from glann.runtime.processes import ranks, total
from glann.runtime.randomness import stream
from glann.training.batches import Inputs
from glann.training.course import Batch
from glann.training.optimization import MovingAverage, adam, step
from glann.training.shards import Shard


class PeerStep(ABC):
    """A step of a rival's training: it computes the gradients of all networks, and steps them together.

    Parameters
    ----------
    name
        The rival's name, which names its random streams.
    images
        This process's images, uint8 [n, h, h, c]; may be memory-mapped.
    architecture
        The decoder.
    config
        The rival's section of peers/params.yaml.
    loss
        The reconstruction loss, for a rival that has one.
    shard
        This process's share of every batch.
    seed, execution
        Seed of every draw; device and precision.

    Attributes
    ----------
    networks
        The decoder and the judges, by name.
    average
        The moving average of the decoder.
    lr
        The learning rate.
    optimizer
        Of all networks.
    """

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        architecture: DecoderArchitecture,
        config: Peer,
        loss: Loss,
        shard: Shard,
        seed: int,
        execution: Execution,
    ):
        self.name, self.images, self.shard = name, images, shard
        self.seed, self.execution, self.config = seed, execution, config
        self.architecture = architecture
        self.networks = nn.ModuleDict({"decoder": DecoderNetwork(architecture)})
        for judge, mirrored in judges_of(name, architecture).items():
            self.networks[judge] = JudgeNetwork(mirrored)
        for part, network in self.networks.items():
            initialize(network, stream(seed, name, part))
        self.networks.to(execution.device).to(memory_format=torch.channels_last)
        self.decoder = self.networks["decoder"]
        self.average = MovingAverage(self.decoder, config.ema)
        self.lr = config.rate(architecture.config)
        first, second = config.betas
        try:
            self.optimizer = adam(self.networks, self.lr, config.parameter_groups, (first, second))
        except GlannError as error:
            raise GlannError(f"peers/params.yaml: {name}.{error}") from None

    def read(self, batch: Batch) -> Inputs:
        """Read the images of a batch, and draw its noise, the same for any number of ranks."""
        noise = torch.randn(
            self.shard.strata, self.noise_dim, generator=stream(self.seed, self.name, batch.step, "noise")
        )
        places = self.shard.place(batch.rows) + self.shard.places.start
        return {
            "images": torch.from_numpy(np.asarray(self.images[batch.rows.numpy()])),
            "noise": noise[places],
            "rows": batch.rows,
            "weight": batch.weight,
            "rate": batch.rate,
            "share": self.average.share(batch.step),
        }

    @property
    def noise_dim(self) -> int:
        """Numbers that are drawn for each image of a batch."""
        return self.architecture.latent_dim

    def __call__(self, x: Inputs) -> Tensor:
        """Make the step and return the mean loss of this process's rows, float32 []."""
        loss = self.gradients(x)
        self.update(x)
        self.average.update(self.decoder, x["share"])
        return loss.detach()

    @abstractmethod
    def gradients(self, x: Inputs) -> Tensor:
        """Compute the gradients of all networks; return the loss, float32 []."""

    def phase(self, done: float) -> Hashable:
        """Return the part of the training that comes after a fraction of it, see `Replay`."""
        return None

    def update(self, x: Inputs) -> None:
        """Average the gradients over ranks, and step the parameters that have some."""
        if ranks() > 1:
            gradients = [p.grad for p in self.networks.parameters() if p.grad is not None]
            joined = total(torch.cat([gradient.flatten() for gradient in gradients])) / ranks()
            parts = joined.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        step(self.optimizer, self.lr * x["rate"])

    def draw(self, noise: Tensor) -> Tensor:
        """Decode noise [b, d], projected to the unit sphere, to images [b, c, h, h]."""
        with self.execution.autocast():
            return self.decoder(F.normalize(noise, dim=1))

    def judge(self, images: Tensor, read: Tensor | None = None, by: str = "judge") -> Tensor:
        """Return the outputs of a judge, float32 [b, k]."""
        with self.execution.autocast():
            return self.networks[by](images, read).float()

    def real(self, x: Inputs) -> Tensor:
        """Return the images of the batch, float32 [b, c, h, h]."""
        return to_float(x["images"])


def squared_slope(scores: Tensor, images: Tensor) -> Tensor:
    """Return the squared gradient of each image's score: float32 [b], with a gradient of its own.

    Parameters
    ----------
    scores
        float [b, ...], computed from `images`, each from its own.
    images
        float [b, c, h, w] that require gradients.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.float().flatten(1).square().sum(dim=1)
