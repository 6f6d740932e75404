"""Other ways to match latents with candidates than by the nearest one, for the study.

Each is called as `glann.imle.fit_imle` calls its `match`: with latents float32 [n, d], blocks of candidates,
index and precision; returns squared distances float32 [n] and numbers int64 [n] of the matched candidates.
"""

from collections.abc import Callable, Iterable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from glann.errors import GlannError
from glann.imle import Matched
from glann.neighbors import nearest

BLOCK = 1000  # latents that are assigned at once: the assignment's time grows with the cube


def reject_nearest(share: float) -> Callable[..., Matched]:
    """RS-IMLE (arXiv:2409.17439, algorithm 1): candidates within epsilon of a latent are not matched.

    Epsilon is such that a share of all candidates is rejected.
    """

    def match(latents: Tensor, blocks: Iterable[Tensor], index: str, precision: torch.dtype) -> Matched:
        candidates = torch.cat([*blocks])
        to_latent = nearest(candidates, latents)[0][:, 0]
        kept = (to_latent >= to_latent.quantile(share)).nonzero()[:, 0]
        distances, rows = nearest(latents, candidates[kept], index=index)
        return distances[:, 0], kept[rows[:, 0]]

    return match


def assign(latents: Tensor, blocks: Iterable[Tensor], index: str, precision: torch.dtype) -> Matched:
    """One candidate for each latent, none twice: optimal transport, exact within random blocks of both."""
    device = latents.device
    latents, candidates = latents.cpu(), torch.cat([*blocks]).cpu()
    if len(candidates) < len(latents):
        raise GlannError("imle.candidates: a one-to-one match needs 1 or more; raise it")
    parts = -(-len(latents) // BLOCK)
    distances, rows = torch.empty(len(latents)), torch.empty(len(latents), dtype=torch.int64)
    own, theirs = (torch.randperm(len(x)).tensor_split(parts) for x in (latents, candidates))
    for a, b in zip(own, theirs, strict=True):
        cost = torch.cdist(latents[a], candidates[b]).square()
        i, j = (torch.from_numpy(found) for found in linear_sum_assignment(cost.numpy()))
        distances[a[i]], rows[a[i]] = cost[i, j], b[j]
    return distances.to(device), rows.to(device)
