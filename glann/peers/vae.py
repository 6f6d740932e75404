"""A variational autoencoder with a weight on the divergence (arXiv:1312.6114, arXiv:1804.03599)."""

from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from glann.glo.losses import reconstruction_loss
from glann.glo.settings import Loss
from glann.networks.decoders.network import DecoderArchitecture
from glann.peers.settings import Vae
from glann.peers.step import PeerStep
from glann.runtime.compute import Execution
from glann.runtime.randomness import stream
from glann.training.batches import Inputs
from glann.training.course import Batch
from glann.training.shards import Shard

LOG_VARIANCE = -30.0, 20.0  # as of the encoder in arXiv:2112.10752; beyond, exp overflows


class VaeStep(PeerStep):
    """Encodes images, draws a latent near each code, decodes it, and compares, with the loss of GLO."""

    config: Vae

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        architecture: DecoderArchitecture,
        config: Vae,
        loss: Loss,
        shard: Shard,
        seed: int,
        execution: Execution,
    ):
        super().__init__(name, images, architecture, config, loss, shard, seed, execution)
        self.loss_of = reconstruction_loss(loss, execution, images)
        self.beta = config.weight(architecture.config, loss.kind)

    def read(self, batch: Batch) -> Inputs:
        """Read the batch, and draw what is random in the reconstruction loss."""
        draws = stream(self.seed, self.name, batch.step, "loss")
        return super().read(batch) | self.loss_of.draw(draws, batch.done)

    def phase(self, done: float) -> Hashable:
        """Return the part of the reconstruction loss."""
        return self.loss_of.enter(done)

    def gradients(self, x: Inputs) -> Tensor:
        """Compute the gradients of both networks."""
        images = self.real(x)
        mean, log_variance = self.judge(images).chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        made = self.draw(mean + (log_variance / 2).exp() * x["noise"])
        with self.execution.autocast():
            reconstruction = self.loss_of(made, images, x["rows"], x)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).mean() / 2
        loss = reconstruction + self.beta * divergence
        (loss * x["weight"]).backward()
        return loss
