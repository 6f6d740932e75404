"""Drawing noise, mapping it to candidates, and finding the candidate nearest to each latent."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glann.imle.settings import Imle
from glann.neighbors.search import nearest_in_blocks
from glann.networks.mappings.network import MappingNetwork
from glann.runtime.compute import Execution
from glann.runtime.processes import all_rows, rank, ranks, rows_at_first, total
from glann.runtime.randomness import stream
from glann.training.shards import Shard

CANDIDATES_AT_ONCE = 65_536  # drawn, mapped and searched at once
MAPPED_AT_ONCE = 2048  # so that activations stay in the processor's cache


class Matching:
    """For each of this rank's latents, the noise of its nearest candidate (arXiv:1809.09087, algorithm 1).

    Parameters
    ----------
    wanted
        This rank's latents in unit coordinates, float32 [n, d].
    shard
        Which rows these are.
    config
        The `imle` section of params.yaml.
    seed
        Seed of the noise.
    execution
        Device and precision.

    Attributes
    ----------
    noise
        float32 [n, e]; zeros before the first `renew`.
    """

    def __init__(self, wanted: Tensor, shard: Shard, config: Imle, seed: int, execution: Execution):
        self.wanted, self.shard, self.config = wanted, shard, config
        self.seed, self.execution = seed, execution
        self.noise = wanted.new_zeros(len(wanted), config.noise_dim)
        self._distance = torch.zeros((), dtype=torch.float64)

    @property
    def distance(self) -> float:
        """Mean squared distance from all ranks' latents to their nearest candidates, to six digits."""
        return float(f"{self._distance.item():.6g}")

    def renew(self, mapping: MappingNetwork, epoch: int) -> None:
        """Draw the candidates of an epoch, and match each latent with its nearest candidate."""
        count = candidate_count(self.config, self.shard.n)
        draws = NoiseDraws(count, self.config.noise_dim, self.seed, epoch, self.execution.device)
        candidates = (map_candidates(mapping, noise, self.execution) for noise in draws.blocks())
        distances, rows = nearest_in_blocks(
            self.wanted, candidates, self.config.index, self.execution.precision
        )
        self.noise = draws.rows(rows)
        self._distance = total(distances.double().sum()).cpu() / self.shard.n

    def expected(self) -> dict[str, Tensor]:
        """Return what `state` does, without memory (see `glann.training.state.Rows`)."""
        noise = self.noise.new_empty(self.shard.n, self.config.noise_dim, device="meta")
        return {"noise": noise, "distance": self._distance}

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name; on rank 0, with the rows of all ranks."""
        return {"noise": rows_at_first(self.noise), "distance": self._distance}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take this rank's rows from what `state` returned."""
        self.noise.copy_(tensors["noise"][self.shard.start : self.shard.stop])
        self._distance = tensors["distance"]


def candidate_count(config: Imle, latents: int) -> int:
    """Return the number of candidates in each epoch's search."""
    return max(2, round(config.candidates * latents))


@dataclass(frozen=True)
class NoiseDraws:
    """The noise of an epoch's candidates. It is drawn in blocks, and drawn again when needed.

    Attributes
    ----------
    count
        Number of candidates.
    dim
        Size of the noise vector, e.
    seed, epoch
        They decide what is drawn.
    device
        Where the noise is needed.
    """

    count: int
    dim: int
    seed: int
    epoch: int
    device: torch.device

    def blocks(self) -> Iterator[Tensor]:
        """Yield all noise in blocks, float32 [b, e]."""
        for start in range(0, self.count, CANDIDATES_AT_ONCE):
            yield self._block(start)

    def rows(self, rows: Tensor) -> Tensor:
        """Return the noise of chosen candidates: int64 [r] to float32 [r, e]."""
        chosen = torch.empty(len(rows), self.dim, device=self.device)
        for start in range(0, self.count, CANDIDATES_AT_ONCE):
            here = (rows // CANDIDATES_AT_ONCE == start // CANDIDATES_AT_ONCE).nonzero()[:, 0]
            chosen[here] = self._block(start)[rows[here] - start]
        return chosen

    def _block(self, start: int) -> Tensor:
        size = min(CANDIDATES_AT_ONCE, self.count - start)
        generator = stream(self.seed, "imle", self.epoch, "noise", start)
        return torch.randn(size, self.dim, generator=generator).to(self.device)


@torch.no_grad()
def map_candidates(mapping: MappingNetwork, noise: Tensor, execution: Execution) -> Tensor:
    """Map noise [b, e] to candidates in unit coordinates [b, d], in evaluation mode.

    Each rank maps its share of the noise, and gets all candidates.
    """
    mapping.eval()
    own = noise.tensor_split(ranks())[rank()]
    with execution.autocast():
        mapped = torch.cat([mapping.unit(part) for part in own.split(MAPPED_AT_ONCE)])
    return all_rows(mapped)
