"""Other ways to match latents with noise than by the nearest candidate, for the study."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from glann.errors import GlannError
from glann.imle import Match, Matched, NoiseDraws
from glann.neighbors import nearest

BLOCK = 1000  # latents that are assigned at once: the assignment's time grows with the cube
MapNoise = Callable[[Tensor], Tensor]


def reject_nearest(share: float) -> Match:
    """RS-IMLE (arXiv:2409.17439, algorithm 1): candidates within epsilon of a latent are not matched.

    Epsilon is such that a share of all candidates is rejected.
    """

    def match(latents: Tensor, draws: NoiseDraws, mapped: MapNoise, before: Tensor) -> Matched:
        candidates = torch.cat([*map(mapped, draws.blocks())])
        to_latent = nearest(candidates, latents)[0][:, 0]
        kept = (to_latent >= to_latent.quantile(share)).nonzero()[:, 0]
        distances, rows = nearest(latents, candidates[kept])
        return distances[:, 0], draws.rows(kept[rows[:, 0]])

    return match


def assign(latents: Tensor, draws: NoiseDraws, mapped: MapNoise, before: Tensor) -> Matched:
    """One candidate for each latent, none twice: optimal transport, exact within random blocks of both."""
    candidates = torch.cat([*map(mapped, draws.blocks())]).cpu()
    wanted = latents.cpu()
    if len(candidates) < len(wanted):
        raise GlannError("imle.candidates: a one-to-one match needs 1 or more; raise it")
    parts = -(-len(wanted) // BLOCK)
    distances, rows = torch.empty(len(wanted)), torch.empty(len(wanted), dtype=torch.int64)
    own, theirs = (torch.randperm(len(x)).tensor_split(parts) for x in (wanted, candidates))
    for a, b in zip(own, theirs, strict=True):
        cost = torch.cdist(wanted[a], candidates[b]).square()
        i, j = (torch.from_numpy(found) for found in linear_sum_assignment(cost.numpy()))
        distances[a[i]], rows[a[i]] = cost[i, j], b[j]
    return distances.to(latents.device), draws.rows(rows.to(latents.device))


class Adaptive:
    """Adaptive IMLE (Aghabozorgi, Peng & Li, ICML 2023): a latent keeps its noise until it is well fitted.

    A latent is matched anew once its distance has fallen to a share of what it was when it was matched, so
    that latents that are hard to reach are not given up for others.
    """

    def __init__(self, share: float):
        self.share = share
        self.at_match: Tensor | None = None  # squared distances [n]

    def __call__(self, latents: Tensor, draws: NoiseDraws, mapped: MapNoise, before: Tensor) -> Matched:
        """Match, see `glann.imle.Match`."""
        found, rows = nearest(latents, torch.cat([*map(mapped, draws.blocks())]))
        distances, noise = found[:, 0], draws.rows(rows[:, 0])
        if self.at_match is None:
            self.at_match = distances
            return distances, noise
        now = (mapped(before) - latents).square().sum(dim=1)
        again = now <= self.share**2 * self.at_match
        self.at_match = torch.where(again, distances, self.at_match)
        return torch.where(again, distances, now), torch.where(again[:, None], noise, before)


def blurred(spread: float) -> Match:
    """Match the nearest candidate, then move its noise by a normal draw, so that neighbours answer alike."""

    def match(latents: Tensor, draws: NoiseDraws, mapped: MapNoise, before: Tensor) -> Matched:
        distances, rows = nearest(latents, torch.cat([*map(mapped, draws.blocks())]))
        noise = draws.rows(rows[:, 0])
        moved = noise + spread * torch.randn_like(noise)
        return distances[:, 0], F.normalize(moved, dim=1) * noise.norm(dim=1, keepdim=True)

    return match
