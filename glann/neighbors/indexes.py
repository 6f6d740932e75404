"""The Faiss index strings that `imle.index` may hold.

Faiss knows many more. Left out is what looks for rows in another space (PCA, OPQ, LSH, RaBitQ), finds others
with each run (NSG), or ends the process on some numbers that Faiss does not check.
"""

import re
from dataclasses import dataclass

from glann.errors import GlannError

MOST_LISTS = 2**20
LINKS = range(2, 129)  # per row of a graph; Faiss crashes on fewer, and 64 are many
MOST_EFFORT = 2048  # lists or rows looked at; the largest number of lists that a GPU can
TRAINING_ROWS = 64  # per centroid; Faiss's 256 take four times as long and find no nearer rows
MOST_CENTROIDS = 2**8  # that a code other than a list's number can name
GPU_PARTS = {1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48}  # of product quantisers that Faiss has on GPUs

NUMBER = "[1-9][0-9]{0,6}"  # \d would take the digits of every script
SCALAR = "SQ(?:4|6|8|fp16)"
PATTERN = re.compile(
    f"(?P<factory>(?:IVF(?P<lists>{NUMBER}),)?(?:Flat|{SCALAR}|PQ(?P<parts>{NUMBER})(?:x(?P<bits>[4-8]))?)"
    f"|HNSW(?P<links>{NUMBER})(?:,(?:Flat|{SCALAR}))?)"
    f"(?: *; *(?P<setting>nprobe|efSearch)=(?P<effort>{NUMBER}))?"
)
FORMS = "Flat, SQ8, PQ16, IVF4096,Flat;nprobe=8 (or SQ8, PQ16 in place of Flat) or HNSW32;efSearch=64"


@dataclass(frozen=True)
class SearchIndex:
    """What an index string says.

    Attributes
    ----------
    factory
        What Faiss builds it from.
    setting
        How it is searched, e.g. "nprobe=8"; empty: as Faiss does.
    lists
        Of an inverted file (IVF); 0: it is none.
    links
        Per row of a graph (HNSW); 0: it is none.
    parts, bits
        Of a product quantiser (PQ), and the bits of each part; 0: there is none.
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
        """Rows that it learns its lists and codes from."""
        return TRAINING_ROWS * max(self.lists, MOST_CENTROIDS)

    def check(self, rows: int, dim: int) -> None:
        """Refuse a number of candidates, or of numbers in each, that it cannot be built for.

        Raises
        ------
        GlannError
            Saying what to change.
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
        If it is none of those known here; the text goes behind "imle.".
    """
    found = PATTERN.fullmatch(text)
    if not found:
        raise ValueError(f"index: {text[:60]!r} is none of the index strings known here; use {FORMS}")
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
