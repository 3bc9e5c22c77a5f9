"""Cards by name, and so many of them: what `--on 8xH200,4 nodes` means.

Figures are the makers': bfloat16 without sparsity from the data sheets of H200, H100 SXM, A100 SXM (80 and 40 GB), L40S
and GeForce RTX 4090 (its Ada white paper: 165 T with float32 sums, as training adds them up), bandwidths of memory and
NVLink from the same, NVLink and PCIe one way. Memory is what the driver shows a program. Networks are those of the
makers' own machines: eight 400 Gb/s adapters in a DGX H100 or H200, eight of 200 Gb/s in a DGX A100; of the others
100 Gb/s a machine of eight is assumed. `CPU` is a processor of two cores with AVX2 in float32: a word for a machine
that a probe has measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from align.plan.parts import GIB
from align.recipe.errors import did_you_mean
from align.runtime.errors import AlignError

TERA, GIGA = 10**12, 10**9


class ScaleError(AlignError, ValueError):
    """Hardware or a size that cannot be read, or a recipe that cannot be laid out."""


@dataclass(frozen=True, slots=True)
class Card:
    """What one card can do, at its published peak.

    Attributes:
        flops: of bfloat16 products, a second.
        bandwidth: bytes a second of its memory.
        memory: bytes.
        link: bytes a second, one way, to a card of the same machine (NVLink, else PCIe).
        network: bytes a second, one way, to other machines.
        host: bytes a second, one way, to the host's memory.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    link: float
    network: float
    host: float


CARDS = {
    card.name: card
    for card in (
        Card("H200", 989 * TERA, 4.8 * TERA, 139 * GIB, 450 * GIGA, 50 * GIGA, 64 * GIGA),
        Card("H100", 989 * TERA, 3.35 * TERA, 79 * GIB, 450 * GIGA, 50 * GIGA, 64 * GIGA),
        Card("A100-80", 312 * TERA, 2.039 * TERA, 79 * GIB, 300 * GIGA, 25 * GIGA, 32 * GIGA),
        Card("A100-40", 312 * TERA, 1.555 * TERA, 39 * GIB, 300 * GIGA, 25 * GIGA, 32 * GIGA),
        Card("L40S", 362 * TERA, 0.864 * TERA, 44 * GIB, 32 * GIGA, 1.5 * GIGA, 32 * GIGA),
        Card("4090", 165 * TERA, 1.008 * TERA, 23 * GIB, 32 * GIGA, 1.5 * GIGA, 32 * GIGA),
        Card("CPU", 0.2 * TERA, 0.02 * TERA, 16 * GIB, 5 * GIGA, 1 * GIGA, 20 * GIGA),
    )
}
_MEANT = re.compile(r"(?:(\d+)\s*[x×*]\s*)?([A-Za-z0-9-]+?)(?:\s*,\s*(\d+)\s*(?:nodes?)?)?", re.IGNORECASE)
MOST = 4096  # cards


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines of equal cards."""

    card: Card
    cards_per_node: int = 1
    nodes: int = 1

    @property
    def cards(self) -> int:
        """All of them."""
        return self.cards_per_node * self.nodes

    @property
    def words(self) -> str:
        """`4 nodes of 8 × H200`."""
        one = f"{self.cards_per_node} × {self.card.name}"
        return one if self.nodes == 1 else f"{self.nodes} nodes of {one}"

    def collective(self, ranks: int) -> float:
        """Bytes a second, one way, that a rank passes on in a ring of so many: across machines all adapters of a
        machine carry the rings together."""
        across = self.card.network * self.cards_per_node
        return self.card.link if ranks <= self.cards_per_node else min(self.card.link, across)


def read_cluster(text: str) -> Cluster:
    """What `H200`, `8xH200`, `8xH200,4 nodes` mean.

    Raises:
        ScaleError: no such card, or too many.
    """
    found = _MEANT.fullmatch(text.strip())
    if not found:
        raise ScaleError(f"--on {text}: write cards as 8xH200, or 8xH200,4 for four machines of them")
    number, name, nodes = found[1], found[2], found[3]
    card = {one.lower(): card for one, card in CARDS.items()}.get(name.lower())
    if card is None:
        near = did_you_mean(name, CARDS)
        hint = f"did you mean '{near}'? " if near else ""
        raise ScaleError(f"--on {text}: the card '{name}' is not known; {hint}known are {', '.join(CARDS)}")
    cluster = Cluster(card, int(number or 1), int(nodes or 1))
    if not 0 < cluster.cards <= MOST:
        raise ScaleError(f"--on {text}: that is {cluster.cards} cards; use 1 to {MOST}")
    return cluster
