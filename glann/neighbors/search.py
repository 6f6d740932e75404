"""Nearest-neighbour search with Faiss, on the GPU if the tensors are there and Faiss sees it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from glann.errors import GlannError
from glann.neighbors.bfloat16 import nearest_row
from glann.neighbors.indexes import SearchIndex, parse_index
from glann.runtime.reporting import memory_ran_out

NUMBERS_AT_ONCE = 2**24  # differences in memory at once; 64 MiB
FAISS_RESERVES = 3 * 2**29  # bytes, on GPUs of more than 8 GiB
QUERIES_AT_ONCE = 65_536  # queries of the bfloat16 search at once, which needs a few kB for each


def nearest_in_blocks(
    queries: Tensor,
    blocks: Iterable[tuple[Tensor, Tensor]],
    index: str = "Flat",
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Find the nearest row of every query in a database that comes in blocks, and what that row carries.

    Exact search takes one block at a time and keeps the best so far, so the whole database is never in
    memory. An approximate index needs all of it.

    Parameters
    ----------
    queries
        float32 [q, d].
    blocks
        Rows float32 [b, d] of the database, and what they carry, [b, ...]; on the queries' device.
    index
        Faiss index factory string, as in `nearest`.
    precision
        With bfloat16, exact search on the CPU uses bfloat16 products first. The result is the same.

    Returns
    -------
    tuple
        Squared L2 distances float32 [q], and what the nearest rows carry, [q, ...].
    """
    if index != "Flat":
        parts, carried = [], []
        for block, of_block in blocks:
            parts.append(block)
            carried.append(of_block)
        database = torch.cat(parts)
        parts.clear()  # the index needs as much
        distances, rows = nearest(queries, database, index=index)
        return distances[:, 0], torch.cat(carried)[rows[:, 0]]
    best, of_best = queries.new_full((len(queries),), torch.inf), None
    for block, of_block in blocks:
        if precision == torch.bfloat16 and not queries.is_cuda:
            nearest_rows = [nearest_row(part, block) for part in queries.split(QUERIES_AT_ONCE)]
            distances, rows = (torch.cat(found) for found in zip(*nearest_rows, strict=True))
        else:
            distances, rows = (part[:, 0] for part in nearest(queries, block))
        if of_best is None:
            best, of_best = distances, of_block[rows]
            continue
        closer = (distances < best).nonzero()[:, 0]
        best[closer], of_best[closer] = distances[closer], of_block[rows[closer]]
    assert of_best is not None, "there are no blocks"
    return best, of_best


def nearest(queries: Tensor, database: Tensor, k: int = 1, index: str = "Flat") -> tuple[Tensor, Tensor]:
    """Find the k nearest database rows of every query.

    Parameters
    ----------
    queries, database
        float32 [q, d] and [m, d], on one device.
    k
        Neighbours per query, at most m.
    index
        Faiss index factory string; "Flat" is exact.

    Returns
    -------
    tuple
        Squared L2 distances float32 [q, k], ascending, and row numbers int64 [q, k]. The distances are exact
        even if an approximate index chose the rows.

    Raises
    ------
    GlannError
        If the index string is not known, the index cannot be built for this database, or memory runs out.
    """
    faiss = _faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    queries, database = queries.detach().contiguous(), database.detach().contiguous()
    if not len(queries):  # of a class of which this process has no row; Faiss refuses this on GPUs
        return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=queries.device)
    if index != "Flat":
        searcher = checked_index(index, len(database), database.shape[1])
        return _by_index(queries, database, k, searcher)
    if not _on_gpu(queries):
        found = faiss.knn(queries.cpu().numpy(), database.cpu().numpy(), k)
        distances, rows = (torch.from_numpy(part) for part in found)
        return distances.to(queries.device), rows.to(queries.device)
    resources = _gpu_resources(queries.get_device())
    return faiss.knn_gpu(resources, queries, database, k, device=queries.get_device())


def checked_index(index: str, rows: int, dim: int) -> SearchIndex:
    """Read an index string and check that it can be built for `rows` rows of `dim` numbers.

    Raises
    ------
    GlannError
        Saying what to change.
    """
    try:
        parsed = parse_index(index)
    except ValueError as error:
        raise GlannError(f"imle.{error}") from None
    parsed.check(rows, dim)
    return parsed


def _on_gpu(rows: Tensor) -> bool:
    """Say whether Faiss can search where the rows are; one without GPU support searches on the CPU."""
    return rows.is_cuda and _faiss().get_num_gpus() > 0


def reserved_bytes(device: torch.device) -> int:
    """Return the bytes that Faiss takes on a device before it searches."""
    on_gpu = device.type == "cuda" and _faiss().get_num_gpus() > 0
    return FAISS_RESERVES if on_gpu and _gpu_resources.cache_info().currsize == 0 else 0


@cache
def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415 (here its absence can be said in one line)
        import faiss.contrib.torch_utils  # noqa: PLC0415 (Faiss reads and writes torch tensors without a copy)
    except ImportError as error:
        raise GlannError(
            f"Faiss cannot be imported ({error}); pip install faiss-gpu on Linux x86-64, faiss-cpu elsewhere"
        ) from None
    return faiss


@cache
def _gpu_resources(device: int) -> Any:
    """Return the Faiss workspace of a device; it takes a second and gigabytes to create, so it is cached."""
    return _faiss().StandardGpuResources()


def _by_index(queries: Tensor, database: Tensor, k: int, index: SearchIndex) -> tuple[Tensor, Tensor]:
    faiss = _faiss()
    on_gpu = _on_gpu(queries) and index.has_gpu_version
    asked, held = (queries, database) if on_gpu else (queries.cpu(), database.cpu())
    with _refusals_in_one_line(index, database):
        searcher = faiss.index_factory(held.shape[1], index.factory)
        if on_gpu:
            device = queries.get_device()
            torch.cuda.empty_cache()  # Faiss cannot use what torch keeps for later
            searcher = faiss.index_cpu_to_gpu(_gpu_resources(device), device, searcher)
        searcher.train(_spread(held, index.training_rows))
        if index.links:  # with several threads, the graph differs from run to run
            faiss.omp_set_num_threads(1)
        searcher.add(held)
        faiss.omp_set_num_threads(torch.get_num_threads())
        if index.setting:
            space = faiss.GpuParameterSpace() if on_gpu else faiss.ParameterSpace()
            space.set_index_parameters(searcher, index.setting)
        rows = searcher.search(asked, k)[1].to(queries.device)
    short = (rows < 0).any(dim=1)  # the lists searched for these queries held fewer than k rows
    if short.any():
        rows[short] = nearest(queries[short], database, k)[1]
    return _in_order(queries, database, rows)


def _spread(rows: Tensor, count: int) -> Tensor:
    """Return `count` evenly spaced rows, or all rows if there are fewer."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]


def _in_order(queries: Tensor, database: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the rows int64 [q, k] found for each query by their distances, and return both.

    An index that stores codes returns distances to what the codes stand for, not to the rows themselves.
    """
    at_once = max(1, NUMBERS_AT_ONCE // (rows.shape[1] * database.shape[1]))
    parts = [
        (asked[:, None] - database[chosen]).square().sum(dim=2)  # => [b, k]
        for asked, chosen in zip(queries.split(at_once), rows.split(at_once), strict=True)
    ]
    distances, order = torch.cat(parts).sort(dim=1, stable=True)
    return distances, rows.gather(1, order)


@contextmanager
def _refusals_in_one_line(index: SearchIndex, database: Tensor) -> Iterator[None]:
    what = f"imle.index: {index.factory} of {len(database)} rows of {database.shape[1]} numbers"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if memory_ran_out(error):
            raise GlannError(f"{what}: memory ran out; lower imle.candidates, or use Flat") from None
        reason = " ".join(str(error).rsplit(": ", 1)[-1].split())[:150]
        raise GlannError(f"{what}: Faiss failed ({reason}); use Flat") from None
