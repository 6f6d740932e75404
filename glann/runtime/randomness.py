"""All randomness. A draw depends only on the seed and its name, never on earlier draws.

So resuming a run, or running it on several processes, does not change it. Global generators are not used.
"""

import hashlib

import torch
from torch import Tensor

BLOCK = 64  # rows drawn at once by `noise_rows`


def stream_seed(seed: int, *name: str | int) -> int:
    """Return the 63-bit seed of the stream called `name` under the run's `seed`."""
    digest = hashlib.sha256("/".join(map(str, (seed, *name))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, *name: str | int) -> torch.Generator:
    """Return an independent CPU generator, e.g. ``stream(0, "glo", epoch, "order")``."""
    return torch.Generator().manual_seed(stream_seed(seed, *name))


def noise_rows(start: int, stop: int, dim: int, seed: int, *name: str | int) -> Tensor:
    """Return rows `start` to `stop` of an infinite table of standard normal noise.

    The table is drawn in blocks of `BLOCK` rows, each from its own stream, so a row does not depend on which
    slice it is part of.

    Returns
    -------
    Tensor
        float32 [stop - start, dim].
    """
    first, last = start // BLOCK, -(-stop // BLOCK)
    blocks = [torch.randn(BLOCK, dim, generator=stream(seed, *name, block)) for block in range(first, last)]
    table = torch.cat(blocks) if blocks else torch.empty(0, dim)
    return table[start - first * BLOCK : stop - first * BLOCK]
