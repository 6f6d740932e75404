"""Batch normalisation over several processes, and the initial weights of all networks."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from glann.runtime.processes import ranks, total

# The last layer of a decoder starts small, so that images start grey. A saturated sigmoid never learns.
START_GREY = 0.1
LARGEST_MAP = 128  # px; larger maps would have most of a decoder's weights
MAP_SPREAD = 0.5  # standard deviation of the initial values of maps; features have about 1


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Normalise features [b, c] or [b, c, h, w] by the mean and variance of the whole batch, on all ranks.

    torch's SyncBatchNorm does the same, but only on GPUs.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalise. In training, use the batch's statistics and update the running ones."""
        if not self.training or ranks() == 1:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        dims = [0, *range(2, input.dim())]
        values = input.float()
        count = total(torch.full((), values.numel() / values.shape[1], device=input.device))
        sums = _Total.apply(torch.stack([values.sum(dims), values.square().sum(dims)])) / count  # => [2, c]
        mean, variance = sums[0], sums[1] - sums[0].square()
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.momentum or 1 / int(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        shape = (1, -1, *[1] * (input.dim() - 2))
        return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(input.dtype)


class _Total(torch.autograd.Function):
    """The sum over all ranks, whose gradient on each rank is the sum of those of all."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


class DetailMap(nn.Module):
    """Add a learned map to features [b, c, size, size], up to `LARGEST_MAP` px; beyond, add nothing."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.map = nn.Parameter(torch.zeros(1, channels, size, size)) if size <= LARGEST_MAP else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return x if self.map is None else x + self.map.to(x.dtype)


def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights from `generator` (He et al., arXiv:1502.01852), and set biases to zero.

    If a layer has an attribute ``init_scale``, its weights are multiplied by it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # In a transposed convolution of stride s, 1 / s² of the taps contribute to each output.
            taps = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):
                taps = layer.weight[:, 0].numel() // math.prod(layer.stride)
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / taps), generator=generator)
            with torch.no_grad():
                layer.weight *= getattr(layer, "init_scale", 1.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, DetailMap) and layer.map is not None:
            nn.init.normal_(layer.map, 0, MAP_SPREAD, generator=generator)
