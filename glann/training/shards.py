"""Which rows make up each batch of an epoch, and which process holds them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glann.errors import GlannError
from glann.runtime.randomness import stream


@dataclass(frozen=True)
class Shard:
    """A rank's share of n rows, and of every batch that is drawn from them.

    The rows are cut into as many strata as a batch has places; each epoch shuffles every stratum by itself,
    and place j of a batch is always filled from stratum j. So batches are the same for any number of ranks,
    a rank that holds whole strata has its share of every batch at hand, and no row ever moves.

    Attributes
    ----------
    n
        Rows in all, 2 or more.
    batch_size
        Rows of a batch at most; batches are the fewest possible and equal in size to one row. A batch
        has two rows at least, for batch normalisation.
    rank, ranks
        This process and the number of processes.
    """

    n: int
    batch_size: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.ranks > 1 and self.strata < 2 * self.ranks:
            raise GlannError(
                f"glo.batch_size or imle.batch_size: batches of {self.strata} rows are too small for "
                f"{self.ranks} processes; raise it to {2 * self.ranks} or more, or lower compute.processes"
            )

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return max(1, min(-(-self.n // self.batch_size), self.n // 2))

    @property
    def strata(self) -> int:
        """Rows of a full batch."""
        return -(-self.n // self.steps)

    @property
    def start(self) -> int:
        """First row of this rank."""
        return self._first_row(self.places.start)

    @property
    def stop(self) -> int:
        """End of this rank's rows."""
        return self._first_row(self.places.stop)

    @property
    def places(self) -> range:
        """The places of a batch, or strata, that this rank fills."""
        return range(self.strata * self.rank // self.ranks, self.strata * (self.rank + 1) // self.ranks)

    def place(self, rows: Tensor) -> Tensor:
        """Return which of `places`, counted from 0, these rows, int64 counted from `start`, fill."""
        return ((rows + self.start + 1) * self.strata - 1) // self.n - self.places.start

    def batches(self, seed: int, *name: str | int) -> Iterator[tuple[Tensor, float]]:
        """Yield this rank's part of every batch of an epoch.

        Parameters
        ----------
        seed, name
            The stream that shuffles; an epoch's number belongs into it.

        Yields
        ------
        rows
            int64 [b], counted from `start`.
        weight
            Factor on the mean loss of these rows, such that the mean over ranks of its gradients is the
            gradient of the whole batch's mean; 1 for one rank.
        """
        # Strata are up to one row short of a place in every step. These gaps are spread over the steps; here
        # are the steps that have one, in the order of strata.
        count = self.steps * self.strata - self.n
        gaps = torch.arange(count) * self.steps // max(count, 1)
        columns = []
        for stratum in self.places:
            first, last = self._first_row(stratum), self._first_row(stratum + 1)
            present = torch.ones(self.steps, dtype=torch.bool)
            present[gaps[self.steps * stratum - first : self.steps * (stratum + 1) - last]] = False
            column = torch.full((self.steps,), -1)
            column[present] = torch.randperm(last - first, generator=stream(seed, *name, stratum)) + first
            columns.append(column)
        table = torch.stack(columns, dim=1)  # => [steps, strata of this rank]
        for places, missing in zip(table, gaps.bincount(minlength=self.steps).tolist(), strict=True):
            rows = places[places >= 0] - self.start
            yield rows, len(rows) * self.ranks / (self.strata - missing)

    def _first_row(self, stratum: int) -> int:
        return stratum * self.n // self.strata
