"""A Wasserstein GAN with gradient penalty (arXiv:1704.00028)."""

import torch
from torch import Tensor

from glann.peers.settings import WganGp
from glann.peers.step import PeerStep, squared_slope
from glann.training.batches import Inputs


class WganGpStep(PeerStep):
    """Steps the critic with each part of the batch, then the decoder."""

    config: WganGp

    @property
    def noise_dim(self) -> int:
        """Numbers per image: noise for the critic, noise for the decoder, and a place between two images."""
        return 2 * self.architecture.latent_dim + 1

    def gradients(self, x: Inputs) -> Tensor:
        """Step the critic, and compute the gradients of the decoder."""
        parts = self.config.critic_steps
        judged, drawn, place = x["noise"].split(
            [self.architecture.latent_dim, self.architecture.latent_dim, 1], dim=1
        )
        losses = []
        for real, noise, at in zip(
            *(rows.tensor_split(parts) for rows in (self.real(x), judged, place)), strict=True
        ):
            losses.append(self._step_critic(x, real, noise, torch.special.ndtr(at)))  # uniform in [0, 1]
        made = self.draw(drawn.tensor_split(parts)[0])
        shown = made.detach().float().requires_grad_()
        (gradient,) = torch.autograd.grad(-self.judge(shown).mean() * x["weight"], shown)
        made.backward(gradient.to(made.dtype))
        return torch.stack(losses).mean()

    def _step_critic(self, x: Inputs, real: Tensor, noise: Tensor, at: Tensor) -> Tensor:
        with torch.no_grad():
            made = self.draw(noise).float()
        between = torch.lerp(real, made, at[..., None, None]).requires_grad_()
        slope = (squared_slope(self.judge(between), between) + 1e-12).sqrt()
        penalty = self.config.penalty * (slope - 1).square().mean()
        of_real, of_made = self.judge(torch.cat([real, made])).chunk(2)
        loss = of_made.mean() - of_real.mean() + penalty
        (loss * x["weight"]).backward()
        self.update(x)
        return loss.detach()
