"""A mapping of pre-norm residual blocks."""

from torch import Tensor, nn


def residual_mlp(noise_dim: int, latent_dim: int, width: int, depth: int) -> nn.Sequential:
    """Return `depth` blocks x + linear(gelu(linear(norm(x)))) of `width` units."""
    blocks = [ResidualBlock(width) for _ in range(depth)]
    return nn.Sequential(
        nn.Linear(noise_dim, width), *blocks, nn.LayerNorm(width), nn.Linear(width, latent_dim)
    )


class ResidualBlock(nn.Module):
    """x + linear(gelu(linear(norm(x))))."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Refine features [b, width]."""
        return x + self.layers(x)
