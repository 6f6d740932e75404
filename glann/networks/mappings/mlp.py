"""The GLANN paper's mapping: hidden layers with batch normalisation (arXiv:1812.08985)."""

from torch import nn

from glann.networks.layers import BatchNorm


def mlp(noise_dim: int, latent_dim: int, width: int, depth: int) -> nn.Sequential:
    """Return `depth` hidden layers of `width` units, without biases; the paper has two of 128."""
    layers: list[nn.Module] = []
    for before in [noise_dim] + [width] * (depth - 1):
        layers += [nn.Linear(before, width, bias=False), BatchNorm(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, latent_dim, bias=False))
