"""The Faiss index strings that `imle.index` accepts.

Faiss has many more. Not accepted are indexes that search in another space (PCA, OPQ, LSH, RaBitQ), that find
different rows in each run (NSG), or that crash on numbers which Faiss does not check.
"""

import re
from dataclasses import dataclass

from glann.errors import GlannError

MOST_LISTS = 2**20
LINKS = range(2, 129)  # per row of a graph; Faiss crashes on fewer, and 64 is already a lot
MOST_EFFORT = 2048  # lists or rows searched per query; the most lists that Faiss supports on a GPU
TRAINING_ROWS = 64  # per centroid; the 256 of Faiss take four times as long and find no nearer rows
MOST_CENTROIDS = 2**8  # that one code can distinguish
GPU_PARTS = {1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48}  # of product quantisers that Faiss has on GPUs

NUMBER = "[1-9][0-9]{0,6}"  # \d would accept digits of every script
SCALAR = "SQ(?:4|6|8|fp16)"
PATTERN = re.compile(
    f"(?P<factory>(?:IVF(?P<lists>{NUMBER}),)?(?:Flat|{SCALAR}|PQ(?P<parts>{NUMBER})(?:x(?P<bits>[4-8]))?)"
    f"|HNSW(?P<links>{NUMBER})(?:,(?:Flat|{SCALAR}))?)"
    f"(?: *; *(?P<setting>nprobe|efSearch)=(?P<effort>{NUMBER}))?"
)
FORMS = "Flat, SQ8, PQ16, IVF4096,Flat;nprobe=8 (or SQ8, PQ16 in place of Flat) or HNSW32;efSearch=64"


@dataclass(frozen=True)
class SearchIndex:
    """The parts of an index string.

    Attributes
    ----------
    factory
        The part from which Faiss builds the index.
    setting
        How it is searched, e.g. "nprobe=8". Empty: the default of Faiss.
    lists
        Lists of an inverted file (IVF); 0 for other indexes.
    links
        Links per row of a graph (HNSW); 0 for other indexes.
    parts, bits
        Parts of a product quantiser (PQ), and bits of each part; 0 for other indexes.
    """

    factory: str
    setting: str
    lists: int
    links: int
    parts: int
    bits: int

    @property
    def has_gpu_version(self) -> bool:
        """Whether Faiss can search it on a GPU."""
        return self.lists > 0 and (not self.parts or (self.bits == 8 and self.parts in GPU_PARTS))

    @property
    def training_rows(self) -> int:
        """Number of rows that the index learns its lists and codes from."""
        return TRAINING_ROWS * max(self.lists, MOST_CENTROIDS)

    def check(self, rows: int, dim: int) -> None:
        """Refuse a number of candidates, or a latent size, for which it cannot be built.

        Raises
        ------
        GlannError
            If so; the message says what to change.
        """
        if self.parts and dim % self.parts:
            raise GlannError(
                f"imle.index: {self.factory} cuts a latent into {self.parts} equal parts, "
                f"but it has {dim} numbers; choose a number that divides {dim}"
            )
        for needed, what in ((self.lists, "lists"), (2**self.bits, "codes a part")):
            if rows < needed:
                raise GlannError(
                    f"imle.index: {self.factory} has {needed} {what}, but there are only {rows} candidates; "
                    "use Flat, or far fewer of them, or raise imle.candidates"
                )


def parse_index(text: str) -> SearchIndex:
    """Read an index string.

    Raises
    ------
    ValueError
        If it is not accepted. The message is meant to follow "imle.".
    """
    found = PATTERN.fullmatch(text)
    if not found:
        raise ValueError(f"index: {text[:60]!r} is not one of the known index strings; use {FORMS}")
    lists, links, parts, effort = (int(found[name] or 0) for name in ("lists", "links", "parts", "effort"))
    if lists > MOST_LISTS:
        raise ValueError(f"index: {text} has {lists} lists; the most are {MOST_LISTS}")
    if links and links not in LINKS:
        raise ValueError(f"index: {text} has {links} links per row; choose {LINKS[0]} to {LINKS[-1]}")
    setting, goes_with = found["setting"], "nprobe" if lists else "efSearch" if links else None
    if setting and setting != goes_with:
        raise ValueError(f"index: {text}: nprobe goes with IVF, efSearch with HNSW")
    most = min(lists or MOST_EFFORT, MOST_EFFORT)
    if effort > most:
        raise ValueError(f"index: {text}: {setting} can be 1 to {most}")
    bits = int(found["bits"] or 8) if parts else 0
    return SearchIndex(found["factory"], f"{setting}={effort}" if setting else "", lists, links, parts, bits)
