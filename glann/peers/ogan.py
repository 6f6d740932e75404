"""O-GAN in single steps: the discriminator is also the encoder (arXiv:1903.01931)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from glann.peers.settings import Ogan
from glann.peers.step import PeerStep
from glann.training.batches import Inputs


class OganStep(PeerStep):
    """Steps both networks on one loss (section 3.3), with the divergence of GAN-QP (arXiv:1811.07296).

    The judge gives a vector E(x) of the size of the noise. Its mean is the score s, low for training images;
    what is left is the code. Each image is drawn once and judged once: the decoder's gradient comes from the
    same pass through the judge.
    """

    config: Ogan

    def gradients(self, x: Inputs) -> Tensor:
        """Compute the gradients of both networks."""
        real, made = self.real(x), self.draw(x["noise"])
        shown = made.detach().float().requires_grad_()
        seen_real, seen_made = self.judge(real), self.judge(shown)
        similarity = F.cosine_similarity(centred(x["noise"]), centred(seen_made))
        correlation = self.config.weight(self.architecture.config) * similarity.mean()
        of_made = seen_made.mean(dim=1)
        (gradient,) = torch.autograd.grad(
            (of_made.mean() - correlation) * x["weight"], shown, retain_graph=True
        )
        gap = seen_real.mean(dim=1) - of_made
        apart = (2 * (real - shown.detach())).square().flatten(1).mean(dim=1)  # of pixels in [-1, 1]
        loss = (gap + gap.square() / (4 * apart + 1e-6)).mean() - correlation
        (loss * x["weight"]).backward(inputs=[*self.networks["judge"].parameters()])
        made.backward(gradient.to(made.dtype))
        return loss


def centred(rows: Tensor) -> Tensor:
    """Subtract from each row [b, d] its mean."""
    return rows - rows.mean(dim=1, keepdim=True)
