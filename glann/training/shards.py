"""Which rows form each batch of an epoch, and which process holds them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glann.errors import GlannError
from glann.runtime.randomness import stream


@dataclass(frozen=True)
class Shard:
    """A rank's share of n rows and of every batch.

    The rows are cut into as many strata as a batch has places. Each epoch shuffles every stratum separately,
    and place j of a batch is always filled from stratum j. So batches do not depend on the number of ranks,
    and a rank that holds whole strata always holds its share of a batch: no row ever moves.

    Attributes
    ----------
    n
        Number of rows, 2 or more.
    batch_size
        Largest number of rows in a batch. There are as few batches as possible, and their sizes differ by
        one row at most. A batch has at least two rows, as batch normalisation needs.
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
        """Number of batches in an epoch."""
        return max(1, min(-(-self.n // self.batch_size), self.n // 2))

    @property
    def strata(self) -> int:
        """Number of rows in a full batch."""
        return -(-self.n // self.steps)

    @property
    def start(self) -> int:
        """First row of this rank."""
        return self._first_row(self.places.start)

    @property
    def stop(self) -> int:
        """End of this rank's rows (exclusive)."""
        return self._first_row(self.places.stop)

    @property
    def places(self) -> range:
        """The places of a batch (and the strata) that belong to this rank."""
        return range(self.strata * self.rank // self.ranks, self.strata * (self.rank + 1) // self.ranks)

    def place(self, rows: Tensor) -> Tensor:
        """Return the place, counted from this rank's first, of each row, int64 counted from `start`."""
        return ((rows + self.start + 1) * self.strata - 1) // self.n - self.places.start

    def batches(self, seed: int, *name: str | int) -> Iterator[tuple[Tensor, float]]:
        """Yield this rank's part of every batch of an epoch.

        Parameters
        ----------
        seed, name
            The random stream; its name must contain the epoch.

        Yields
        ------
        rows
            int64 [b], counted from `start`.
        weight
            Factor on the mean loss of these rows. With it, the mean of the gradients over ranks is the
            gradient of the mean over the whole batch. 1 for one rank.
        """
        # Some strata have one row less than there are steps. Their gaps are spread evenly over the steps;
        # these are the steps with a gap, in the order of strata.
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
