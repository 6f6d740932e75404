"""How far apart the textures of images are, by the features of VGG-16."""

import torch
import torch.nn.functional as F
from torch import Tensor

DETAIL_LEVELS = 2  # of VGG, at which absolute differences count less if textures are compared
DIRECTIONS, POSITIONS = 16, 1024  # random directions, and at most so many positions, to compare textures


def draw_directions(channels: int, positions: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw what `sliced_wasserstein` compares features along, for feature maps of this size.

    Returns
    -------
    tuple
        Unit directions float32 [channels, k], and the positions that are compared, int64 [p].
    """
    directions = F.normalize(torch.randn(channels, DIRECTIONS, generator=draws), dim=0)
    if positions <= POSITIONS:
        return directions, torch.arange(positions)
    return directions, torch.randperm(positions, generator=draws)[:POSITIONS]


def sliced_wasserstein(found: Tensor, wanted: Tensor, directions: Tensor, chosen: Tensor) -> Tensor:
    """Return how far apart the distributions of features within each image are, wherever they lie.

    The sliced Wasserstein distance of Heitz et al. (CVPR 2021, arXiv:2006.07229): features are projected onto
    random directions, sorted over the positions of an image, and compared in this order, here by L1. Blur
    changes the features whatever their order, so it is penalised; texture that has merely moved is not.

    Parameters
    ----------
    found, wanted
        Features, float [b, c, h, w].
    directions, chosen
        From `draw_directions`. Larger maps are compared at 1,024 random positions.

    Returns
    -------
    Tensor
        float32 [b], for each image the mean over directions and positions.
    """
    directions = directions.to(found.dtype)

    def ordered(features: Tensor) -> Tensor:
        rows = features.permute(0, 2, 3, 1).flatten(1, 2)  # => [b, h * w, c]
        if len(chosen) < rows.shape[1]:
            rows = rows.index_select(1, chosen)
        return (rows @ directions).float().sort(dim=1).values

    return (ordered(found) - ordered(wanted)).abs().mean(dim=(1, 2))


def level_weight(level: int, levels: int, texture: float) -> float:
    """Return the weight of the mean absolute difference at a level, counted from 0, beside that of textures.

    Where details can lie in many ways, an absolute difference is least for their median, which is blur. So at
    the first levels, which see details, it is divided by 1 + `texture`. It keeps its full weight at the last
    level: the distance of textures does not say where anything is.
    """
    return 1 / (1 + texture) if level < min(DETAIL_LEVELS, levels - 1) else 1.0
