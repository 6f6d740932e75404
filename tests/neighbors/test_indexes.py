"""Index strings: which are accepted, and what Faiss makes of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from glann.errors import GlannError
from glann.params import load_params

KILL_OR_HANG = ["HNSW1", "HNSW0", "RR0,Flat", "OPQ4_1000,Flat", "PQ8x0", "PQ8x4fs_0", "NSG0", "NSG1000"]


END_IN_TRACEBACKS = [
    "IVF4,Flat;nprobe=0",
    "IVF0,Flat",
    "PQ4x4;ht=3",
    "IVF4,PQ2,RFlat;k_factor_rf=0",
    "Residual2x6",
]


SEARCH_ELSEWHERE = ["LSH", "PCA4,Flat", "L2norm,Flat", "OPQ2,PQ2", "RaBitQ", "IVF4,RaBitQ"]


NOT_THE_SAME_TWICE = ["NSG16", "NSG16,Flat"]


MISTAKEN = [
    "",
    "Flatt",
    "flat",
    "Flat;nprobe=1",
    "HNSW8;nprobe=2",
    "IVF4,Flat;nprobe=5",
    "IVF4,Flat;probes=3",
]
MISTAKEN += ["IVF4,Flat\n", "IVF٤,Flat", "IVF4,Flat;nprobe=²", "IVF9999999,Flat", "HNSW129", "PQ2x9"]


@pytest.mark.parametrize(
    "index", KILL_OR_HANG + END_IN_TRACEBACKS + SEARCH_ELSEWHERE + NOT_THE_SAME_TWICE + MISTAKEN
)
def test_an_index_that_cannot_be_meant_is_refused_with_the_settings(index: str, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({"imle": {"index": index}}))
    with pytest.raises(GlannError) as error:
        load_params(path)
    assert str(error.value).startswith(f"{path}: imle.index: ") and "\n" not in str(error.value)


SEARCHES = """
import random, torch
from glann.errors import GlannError
from glann.neighbors.indexes import parse_index
from glann.neighbors.search import nearest

torch.set_num_threads(1)
pieces = ["Flat", "IVF", "HNSW", "PQ", "SQ4", "SQ6", "SQ8", "SQfp16", "x", "x4", "x5", ",", ",", ";",
          "nprobe=", "efSearch=", "NSG", "LSH", "_", " ", "0", "1", "2", "3", "4", "7", "16", "64", "²"]
draw = random.Random(0)
strings = {"".join(draw.choices(pieces, k=draw.randint(1, 7))) for _ in range(200_000)}
strings |= {"PQ2x8", "IVF3,PQ1x8", "IVF16,SQ6;nprobe=16", "HNSW64,SQ8;efSearch=64"}
def allowed(text):
    try:
        return parse_index(text)
    except ValueError:
        return None

searched = refused = 0
for text in 3 * sorted(filter(allowed, strings)):
    d, m, k = draw.randint(1, 6), draw.choice([3, 20, 260]), draw.randint(1, 3)
    rows = torch.randn(m, d, generator=torch.Generator().manual_seed(m))
    database = draw.choice([rows, rows[:1].expand(m, d), rows[:2].repeat(m, 1)[:m], 1e4 + rows])
    queries = torch.cat([database[:5], 3 * rows[:5]])
    print(repr(text), d, m, k, flush=True)
    try:
        distances, found = nearest(queries, database, k, text)
    except GlannError as error:
        assert str(error).startswith("imle.index: ") and "failed" not in str(error), error
        refused += 1
        continue
    searched += 1
    exact = (queries[:, None].double() - database[found].double()).square().sum(dim=2)
    if text != "Flat":
        assert distances.isfinite().all() and torch.allclose(distances.double(), exact, rtol=1e-5)
    assert (distances.diff(dim=1) >= 0).all() and all(len(set(row)) == k for row in found.tolist())
assert searched > 100 and refused > 100, (searched, refused)
"""


def test_every_index_that_the_settings_allow_finds_rows_at_their_distances_or_says_why_not():
    """In a process of its own, since what Faiss cannot do may end it."""
    command = [sys.executable, "-c", SEARCHES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()[-3:]
