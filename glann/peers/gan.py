"""A generative adversarial network in single steps (arXiv:1406.2661)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glann.peers.settings import Gan
from glann.peers.step import PeerStep, squared_slope
from glann.training.batches import Inputs
from glann.training.course import Batch

LARGEST_EXPONENT = 60.0  # float32 ends at e^88; for lower scores the gradient of the decoder fades


class GanStep(PeerStep):
    """Steps discriminator and decoder together: each image is drawn once and judged once.

    Of training images x and drawn images x', the discriminator minimises softplus(-s(x)) + softplus(s(x')),
    and the decoder softplus(-s(x')). An image's score depends on no other image. So the decoder's gradient at
    an image is that of the discriminator times the ratio of the derivatives by the score:
    -sigmoid(-s) / sigmoid(s) = -exp(-s).
    """

    config: Gan

    def read(self, batch: Batch) -> Inputs:
        """Read the batch; if the step has a penalty, "penalty" is its weight."""
        read, every = super().read(batch), self.config.penalty_every
        if batch.step % every == 0:
            read["penalty"] = self.config.weight(self.architecture.config) / 2 * every
        return read

    def gradients(self, x: Inputs) -> Tensor:
        """Compute the gradients of both networks."""
        real, made = self.real(x), self.draw(x["noise"])
        shown = made.detach().float().requires_grad_()
        penalised = "penalty" in x
        of_real, of_made = self.judge(torch.cat([real.requires_grad_(penalised), shown])).chunk(2)
        loss = F.softplus(-of_real).mean() + F.softplus(of_made).mean()
        penalty = x["penalty"] * squared_slope(of_real, real).mean() if penalised else 0.0
        ((loss + penalty) * x["weight"]).backward()
        assert shown.grad is not None
        ratio = -(-of_made.detach()).clamp(max=LARGEST_EXPONENT).exp()
        made.backward((shown.grad * ratio[..., None, None]).to(made.dtype))
        return loss
