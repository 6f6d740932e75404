"""Nearest neighbours, exact and by an index."""

import subprocess
import sys

import pytest
import torch

from glann.neighbors.search import _spread, nearest, nearest_in_blocks


def test_nearest_is_what_comparing_all_pairs_finds():
    queries, database = torch.randn(50, 5), torch.randn(400, 5)
    distances, rows = nearest(queries, database, k=3)
    expected = torch.cdist(queries, database).square().topk(3, largest=False)
    assert torch.equal(rows, expected.indices) and torch.allclose(distances, expected.values, atol=1e-4)


def test_a_database_in_blocks_is_searched_as_a_whole_one():
    queries, database = torch.randn(50, 5), torch.randn(400, 5)
    distances, rows = nearest(queries, database)
    for index in ("Flat", "IVF4,Flat;nprobe=4"):
        blocks = zip(database.split(70), torch.arange(400).split(70), strict=True)
        found, found_rows = nearest_in_blocks(queries, blocks, index)
        assert torch.equal(found_rows, rows[:, 0]) and torch.allclose(found, distances[:, 0], atol=1e-4)


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat"])
def test_nothing_is_found_for_no_queries(index: str):
    distances, rows = nearest(torch.empty(0, 5), torch.randn(400, 5), k=2, index=index)
    assert distances.shape == rows.shape == (0, 2) and rows.dtype == torch.int64


def test_an_approximate_index_mostly_agrees():
    queries, database = torch.randn(200, 4), torch.randn(4000, 4)
    _, exact = nearest(queries, database)
    _, found = nearest(queries, database, index="IVF8,Flat")
    assert found.dtype == torch.int64
    # One of eight cells is searched: chance alone would agree in 1 of 4000.
    assert (found == exact).float().mean() > 0.5


def test_a_query_whose_cell_is_empty_is_searched_exactly():
    database = torch.randn(128, 3)
    queries = torch.randn(500, 3) * 5
    distances, rows = nearest(queries, database, k=4, index="IVF64,Flat")  # two rows a cell, four wanted
    assert rows.min() >= 0
    assert torch.allclose(distances, (queries[:, None] - database[rows]).square().sum(dim=2), rtol=1e-3)


@pytest.mark.parametrize(
    "index", ["IVF16,SQ4", "IVF16,PQ2x4;nprobe=2", "HNSW8;efSearch=32", "PQ4x4", "HNSW8,SQ8"]
)
def test_the_same_index_finds_the_same_rows_with_any_number_of_threads(index: str):
    queries, database = torch.randn(2000, 8), torch.randn(20_000, 8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(nearest(queries, database, index=index)[1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


def test_an_index_learns_from_as_many_rows_as_it_needs_from_the_whole_database():
    rows = torch.arange(1000.0)[:, None]
    assert _spread(rows, 4).flatten().tolist() == [0, 250, 500, 750]
    assert _spread(rows, 1000) is rows


def test_an_index_for_which_memory_runs_out_says_so():
    """Links of 128 for each of four million rows are 4 GiB; a process may take one more than it has."""
    code = """
import psutil, resource, torch
from glann.neighbors.search import nearest
nearest(torch.randn(9, 2), torch.randn(99, 2))
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**30,) * 2)
nearest(torch.randn(9, 2), torch.randn(2**22, 2), index="HNSW128")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (
        "GlannError: imle.index: HNSW128 of 4194304 rows of 2 numbers: memory ran out; lower" in done.stderr
    )


@pytest.mark.gpu
@pytest.mark.parametrize("index", ["Flat", "IVF8,Flat", "IVF8,SQ6", "IVF8,PQ4", "HNSW8", "IVF8,PQ2x4", "SQ8"])
def test_the_gpu_finds_what_the_cpu_finds(index: str):
    queries, database = torch.randn(100, 16), torch.randn(3000, 16)
    _, expected = nearest(queries, database)
    distances, found = nearest(queries.cuda(), database.cuda(), index=index)
    assert found.is_cuda and distances.is_cuda
    of_rows = (queries[:, None] - database[found.cpu()]).square().sum(dim=2)
    assert torch.allclose(distances.cpu(), of_rows, rtol=1e-3, atol=1e-3)
    # One cell of eight is searched, by short codes in the worst case; chance would agree in 1 of 3000.
    assert (found.cpu() == expected).float().mean() > (0.99 if index == "Flat" else 0.02)
