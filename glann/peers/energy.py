"""An energy-based model with a maximum entropy generator (arXiv:1901.08508)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glann.peers.settings import Energy
from glann.peers.step import PeerStep, squared_slope
from glann.training.batches import Inputs


class EnergyStep(PeerStep):
    """Steps energy, decoder and a network that estimates the decoder's entropy, all together.

    The energy is low at training images and raised where the decoder draws. The decoder lowers the energy of
    its images minus their entropy. A third network tells an image with its noise from an image with other
    noise; the better it can, the more the image says about its noise (Deep InfoMax, arXiv:1808.06670).
    """

    config: Energy

    def gradients(self, x: Inputs) -> Tensor:
        """Compute the gradients of all three networks."""
        real, made = self.real(x).requires_grad_(), self.draw(x["noise"])
        # Both networks see the same images, but their gradients there are weighted differently.
        shown, told_of = (made.detach().float().requires_grad_() for _ in range(2))
        of_real, of_made = self.judge(real), self.judge(shown)
        penalty = self.config.weight(self.architecture.config) * squared_slope(of_real, real).mean()
        loss = of_real.mean() - of_made.mean() + penalty + self.told_apart(told_of, x["noise"])
        judges = [*self.networks["judge"].parameters(), *self.networks["statistics"].parameters()]
        (loss * x["weight"]).backward(inputs=[*judges, shown, told_of])
        assert shown.grad is not None
        assert told_of.grad is not None
        made.backward((self.config.entropy * told_of.grad - shown.grad).to(made.dtype))
        return loss

    def told_apart(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the cross-entropy of telling pairs of image and noise from other pairs, float32 []."""
        # Pairs from one batch: each image with the noise of the next.
        both = torch.cat([noise, noise.roll(1, 0)])
        own, other = self.judge(images, both, by="statistics").chunk(2)
        return F.softplus(-own).mean() + F.softplus(other).mean()
