import itertools

import pytest

from glann.training.shards import Shard

CASES = [(2, 1), (3, 1), (5, 2), (5, 64), (17, 16), (33, 16), (101, 2), (130, 64), (1000, 128), (9000, 128)]


def batches(shard: Shard, epoch: int = 0) -> list[list[int]]:
    return [(rows + shard.start).tolist() for rows, _ in shard.batches(0, "order", epoch)]


@pytest.mark.parametrize(("n", "batch_size"), CASES)
def test_every_row_comes_once_an_epoch_in_batches_equal_to_one_row(n: int, batch_size: int):
    found = batches(Shard(n, batch_size))
    sizes = [len(batch) for batch in found]
    assert sorted(itertools.chain(*found)) == list(range(n))
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2  # batch normalisation needs two
    assert max(sizes) <= max(batch_size, 3)
    if n > 5:
        assert batches(Shard(n, batch_size), epoch=1) != found


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_any_number_of_ranks_shares_the_same_batches(ranks: int):
    n, batch_size = 1000, 96
    shards = [Shard(n, batch_size, rank, ranks) for rank in range(ranks)]
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert shards[0].start == 0 and shards[-1].stop == n
    parts = zip(*(batches(shard) for shard in shards), strict=True)
    assert [[*itertools.chain(*part)] for part in parts] == batches(Shard(n, batch_size))


@pytest.mark.parametrize(("n", "batch_size"), CASES)
def test_a_row_knows_its_place_in_the_batch(n: int, batch_size: int):
    shard = Shard(n, batch_size)
    for rows, _ in shard.batches(0, "order"):
        places = shard.place(rows).tolist()
        assert places == sorted(set(places)) and places[-1] < shard.strata
        if len(rows) == shard.strata:
            assert places == [*range(shard.strata)]


def test_weights_make_the_mean_over_ranks_the_mean_over_the_batch():
    shards = [Shard(103, 10, rank, 3) for rank in range(3)]
    for parts in zip(*(shard.batches(0, "order") for shard in shards), strict=True):
        size = sum(len(rows) for rows, _ in parts)
        assert [weight / 3 for _, weight in parts] == pytest.approx([len(rows) / size for rows, _ in parts])
