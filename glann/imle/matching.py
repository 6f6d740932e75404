"""Drawing noise, mapping it to candidates, and finding the candidate nearest to each latent."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glann.imle.settings import Imle
from glann.neighbors.search import nearest_in_blocks
from glann.networks.mappings.network import MappingNetwork
from glann.runtime.compute import Execution
from glann.runtime.processes import all_rows, rank, ranks, rows_at_first, total
from glann.runtime.randomness import stream
from glann.training.batches import Inputs, read_ahead
from glann.training.shards import Shard

CANDIDATES_AT_ONCE = 65_536  # drawn, mapped and searched at once
MAPPED_AT_ONCE = 2048  # so that activations stay in the processor's cache
CORRECTIONS_AT_ONCE = 2**24  # numbers of the matrices of classes, which are looked up row by row


@dataclass(frozen=True)
class Group:
    """Latents that are matched with candidates of their own: all of them, or those of one class.

    Attributes
    ----------
    label
        Number of the class; None: there are no classes.
    rows
        int64 [n], which latents; without classes, a slice of all of them.
    count
        Number of candidates.
    """

    label: int | None
    rows: Tensor | slice
    count: int


def groups_of(config: Imle, latents: int, labels: Tensor | None) -> list[Group]:
    """Return all latents as one group, or a group per class that has latents.

    Parameters
    ----------
    config
        The `imle` section of params.yaml.
    latents
        Number of latents.
    labels
        int64 [latents]: the class of each one. None: there are no classes.
    """
    if labels is None:
        return [Group(None, slice(None), candidate_count(config, latents))]
    of_class = [(label, (labels == label).nonzero()[:, 0]) for label in labels.unique().tolist()]
    return [Group(label, rows, candidate_count(config, len(rows))) for label, rows in of_class]


def _within(group: Group, shard: Shard) -> Group:
    """Return the part of a group that lies in a shard, whose rows are counted from its start."""
    if isinstance(group.rows, slice):
        return group
    rows = group.rows[(group.rows >= shard.start) & (group.rows < shard.stop)] - shard.start
    return replace(group, rows=rows)


class Matching:
    """For each of this rank's latents, the noise of its nearest candidate (arXiv:1809.09087, algorithm 1).

    Parameters
    ----------
    wanted
        This rank's latents in unit coordinates, float32 [n, d].
    shard
        Which rows these are.
    groups
        Which latents share candidates, from `groups_of`.
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

    def __init__(
        self,
        wanted: Tensor,
        shard: Shard,
        groups: list[Group],
        config: Imle,
        seed: int,
        execution: Execution,
    ):
        self.wanted, self.shard, self.config = wanted, shard, config
        self.groups = [_within(group, shard) for group in groups]
        self.seed, self.execution = seed, execution
        self.noise = wanted.new_zeros(len(wanted), config.noise_dim)
        self._distance = torch.zeros((), dtype=torch.float64)

    @property
    def distance(self) -> float:
        """Mean squared distance from all ranks' latents to their nearest candidates, to six digits."""
        return float(f"{self._distance.item():.6g}")

    def renew(self, mapping: MappingNetwork, epoch: int) -> None:
        """Draw the candidates of an epoch, and match each latent with its nearest candidate."""
        apart = torch.zeros((), dtype=torch.float64, device=self.execution.device)
        for group in self.groups:
            candidates = (
                (map_candidates(mapping, noise, self.execution, group.label), noise)
                for noise in noise_blocks(group, self.config.noise_dim, self.seed, epoch, self.execution)
            )
            distances, self.noise[group.rows] = nearest_in_blocks(
                self.wanted[group.rows], candidates, self.config.index, self.execution.precision
            )
            apart += distances.double().sum()
        self._distance = total(apart).cpu() / self.shard.n

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
    """Return the number of candidates in each epoch's search for so many latents."""
    return max(2, round(config.candidates * latents))


def noise_blocks(group: Group, dim: int, seed: int, epoch: int, execution: Execution) -> Iterator[Tensor]:
    """Draw the noise of a group's candidates in an epoch, in blocks float32 [b, dim] on the device.

    For a GPU, a thread draws the next block during the search of this one.
    """
    of_class = () if group.label is None else ("class", group.label)

    def draw(start: int) -> Inputs:
        size = min(CANDIDATES_AT_ONCE, group.count - start)
        generator = stream(seed, "imle", epoch, "noise", start, *of_class)
        return {"noise": torch.randn(size, dim, generator=generator)}

    for block in read_ahead(draw, range(0, group.count, CANDIDATES_AT_ONCE), execution):
        yield block["noise"]


@torch.no_grad()
def map_candidates(
    mapping: MappingNetwork, noise: Tensor, execution: Execution, label: int | None = None
) -> Tensor:
    """Map noise [b, e], all of one class, to candidates in unit coordinates [b, d], in evaluation mode.

    Each rank maps its share of the noise, and gets all candidates.
    """
    mapping.eval()
    own = noise.tensor_split(ranks())[rank()]
    at_once = MAPPED_AT_ONCE if noise.device.type == "cpu" else CANDIDATES_AT_ONCE
    if label is not None:
        at_once = max(1, min(at_once, CORRECTIONS_AT_ONCE // mapping.architecture.latent_dim**2))
    with execution.autocast():
        mapped = torch.cat([mapping.unit(part, of_one(label, part)) for part in own.split(at_once)])
    return all_rows(mapped)


def of_one(label: int | None, noise: Tensor) -> Tensor | None:
    """Return the same label for each row of the noise, int64 [b], or None if there are no classes."""
    return None if label is None else torch.full((len(noise),), label, device=noise.device)
