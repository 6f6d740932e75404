"""Nearest database rows by Faiss, on the GPU where the tensors are and Faiss sees one."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from glann.errors import GlannError
from glann.scan import nearest_row

TRAINING_ROWS = (
    64  # per list of an inverted file; Faiss's 256 take four times as long and find no nearer rows
)
QUERIES_AT_ONCE = 65_536  # in a scan, which takes some kB for each


def nearest_in_blocks(
    queries: Tensor, blocks: Iterable[Tensor], index: str = "Flat", precision: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Find the nearest row of every query in a database that comes in blocks.

    Exact search looks at one block at a time and keeps the best so far, so that the whole database need never
    be in memory; an approximate index needs it.

    Parameters
    ----------
    queries
        float32 [q, d].
    blocks
        Rows float32 [b, d] of the database on the queries' device, in order.
    index
        Faiss index factory string, as in `nearest`.
    precision
        bfloat16 lets exact search on the CPU use such products; the result is the same.

    Returns
    -------
    tuple
        Squared L2 distances float32 [q] and row numbers int64 [q], counted over all blocks.
    """
    if index != "Flat":
        distances, rows = nearest(queries, torch.cat([*blocks]), index=index)
        return distances[:, 0], rows[:, 0]
    best = queries.new_full((len(queries),), torch.inf)
    best_rows = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    before = 0
    for block in blocks:
        if precision == torch.bfloat16 and not queries.is_cuda:
            parts = [nearest_row(part, block) for part in queries.split(QUERIES_AT_ONCE)]
            distances, rows = (torch.cat(found) for found in zip(*parts, strict=True))
        else:
            distances, rows = (found[:, 0] for found in nearest(queries, block))
        closer = distances < best
        best = torch.where(closer, distances, best)
        best_rows = torch.where(closer, rows + before, best_rows)
        before += len(block)
    return best, best_rows


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
        Squared L2 distances float32 [q, k], ascending, and row numbers int64 [q, k].

    Raises
    ------
    GlannError
        If Faiss does not know the index string, or the index needs more rows than there are.
    """
    faiss = _faiss()
    on_gpu = queries.is_cuda and faiss.get_num_gpus() > 0
    queries, database = queries.detach().contiguous(), database.detach().contiguous()
    if queries.is_cuda and not on_gpu:  # a Faiss without GPU support: search on the CPU
        distances, rows = nearest(queries.cpu(), database.cpu(), k, index)
        return distances.to(queries.device), rows.to(queries.device)
    faiss.omp_set_num_threads(torch.get_num_threads())
    if index == "Flat" and on_gpu:
        resources = _gpu_resources(queries.get_device())
        return faiss.knn_gpu(resources, queries, database, k, device=queries.get_device())
    if index == "Flat":
        found = faiss.knn(queries.numpy(), database.numpy(), k)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    return _by_index(queries, database, k, index, on_gpu)


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
    """Return this device's Faiss workspace; making one takes a second and gigabytes, so it is kept."""
    return _faiss().StandardGpuResources()


def _by_index(queries: Tensor, database: Tensor, k: int, index: str, on_gpu: bool) -> tuple[Tensor, Tensor]:
    faiss = _faiss()
    factory, _, settings = index.partition(";")
    try:
        searcher = faiss.index_factory(database.shape[1], factory.strip())
        if ivf := faiss.try_extract_index_ivf(searcher):
            ivf.cp.max_points_per_centroid = TRAINING_ROWS
        if on_gpu:
            device = queries.get_device()
            searcher = faiss.index_cpu_to_gpu(_gpu_resources(device), device, searcher)
        searcher.train(database)
        searcher.add(database)
        if settings:
            space = faiss.GpuParameterSpace() if on_gpu else faiss.ParameterSpace()
            space.set_index_parameters(searcher, settings.strip())
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[0].rsplit(": ", 1)[-1].split())
        raise GlannError(
            f'imle.index: Faiss refused "{index}" for {len(database)} rows of {database.shape[1]} numbers '
            f"({reason}); use Flat, or a factory string such as IVF1024,Flat with far fewer lists than rows"
        ) from None
    distances, rows = searcher.search(queries, k)
    short = (rows < 0).any(dim=1)  # the cells searched for these queries held too few rows
    if short.any():
        distances[short], rows[short] = nearest(queries[short], database, k)
    return distances, rows
