"""Near-duplicates: MinHash signatures and LSH bands (Broder 1997; datasketch) find candidates, the texts decide.

Departures from datasketch's `MinHashLSH`, of which only the choice of bands is used: its tables of Python sets hold
several KB of memory per record, here the bands lie on disk (see `Store`); shingles are hashed all at once by NumPy,
not one by one; and a candidate counts only when the exact Jaccard similarity of the two texts' shingles, counted on
the texts themselves, reaches the threshold. So nothing is dropped by a wrong estimate; a duplicate that shares no band
with the record it repeats is missed, and the bands are chosen so that this is rare (`weights`).
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal

from align.runtime.packages import require_package
from data_formats.cleaning.steps import Finding
from data_formats.cleaning.store import Store
from data_formats.cleaning.texts import folded, prompt_text, reply_texts
from data_formats.cleaning.units import units
from data_formats.records import Record

Shingles = Any  # a NumPy array, which is imported where it is needed
_WEIGHTS = (0.1, 0.9)  # of false positives, which the second look removes, and of false negatives
_MAX_CANDIDATES = 64  # looked at again; those with most bands in common come first
_FACTOR = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: every code unit reaches the high bits


def _datasketch() -> Any:
    require_package("near-duplicate removal", "datasketch", "drop near_duplicates")
    import datasketch

    return datasketch


@lru_cache(maxsize=1 << 16)
def _word_code(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def shingles(text: str, n: int, unit: Literal["char", "word"]) -> Shingles:
    """The set of a text's n-grams as 64-bit hashes, sorted. Shape (number of different n-grams,), uint64.

    A text with fewer than n units is one shingle; an empty one has none. Case, width forms (NFKC) and white space do
    not count.
    """
    import numpy as np

    if unit == "char":
        codes = np.frombuffer(folded(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    else:
        codes = np.array([_word_code(word) for word in units(text)], dtype=np.uint64)
    n = min(n, len(codes))
    if not n:
        return codes
    factor = np.uint64(_FACTOR)
    hashes = np.zeros(len(codes) - n + 1, dtype=np.uint64)
    for at in range(n):  # a polynomial in the codes, modulo 2^64
        hashes = hashes * factor + codes[at : len(codes) - n + 1 + at] + np.uint64(1)
    return np.unique((hashes ^ (hashes >> np.uint64(29))) * factor)


def jaccard(left: Shingles, right: Shingles) -> float:
    """Size of the intersection over that of the union of two sets of shingles; 0 of two empty ones."""
    import numpy as np

    common = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - common
    return common / union if union else 0.0


class NearDuplicates:
    """Drops a record whose text is nearly that of an earlier kept one; the first stays, so the order matters.

    On disk, per kept record: the compressed text and about 20 bytes for each band (280 for the 14 of the defaults);
    memory is flat (see `Store`).

    Args:
        threshold: Jaccard similarity from which two texts are near-duplicates, 0.3 to 0.95.
        num_perm: hash functions of a signature; more find near-duplicates close to the threshold more surely.
        ngram: units of a shingle.
        unit: "char" suits every language; "word" is laxer with small changes of spelling and strict with short texts.
        of: "record" compares prompt and replies together, "prompt" the prompt alone.
        seed: of the hash functions. The result is the same in every process.

    Raises:
        MissingPackageError: datasketch is not installed.
        ValueError: no bands fit the threshold and num_perm.
    """

    name = "near_duplicates"

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        num_perm: int = 128,
        ngram: int = 5,
        unit: Literal["char", "word"] = "char",
        of: Literal["record", "prompt"] = "record",
        seed: int = 1,
    ):
        datasketch = _datasketch()
        self.looks_for = f"texts that share {threshold:.0%} of their {unit} {ngram}-grams with an earlier one (MinHash)"
        self._threshold, self._ngram, self._unit, self._of = threshold, ngram, unit, of
        self._bands = datasketch.MinHashLSH(threshold=threshold, num_perm=num_perm, weights=_WEIGHTS).hashranges
        self._empty = datasketch.MinHash(num_perm=num_perm, seed=seed, scheme="affine32", hashfunc=int)
        self._number = 0
        self._store = Store(
            "band (hash INTEGER, number INTEGER, PRIMARY KEY (hash, number)) WITHOUT ROWID",
            "kept (number INTEGER PRIMARY KEY, text BLOB)",
        )

    def check(self, record: Record) -> Finding | None:
        text = prompt_text(record) if self._of == "prompt" and prompt_text(record) else self._whole(record)
        own = shingles(text, self._ngram, self._unit)
        self._number += 1
        if not len(own):
            return None
        bands = self._band_hashes(own)
        for number, other in self._candidates(bands):
            if (similarity := jaccard(own, shingles(other, self._ngram, self._unit))) >= self._threshold:
                return Finding("drop", "near-duplicate", f"{number} ~ {self._number} ({similarity:.2f}): {text}")
        packed = zlib.compress(text.encode("utf-8", "surrogatepass"), 1)
        self._store.add("INSERT INTO kept VALUES (?, ?)", (self._number, packed))
        self._store.add_many("INSERT OR IGNORE INTO band VALUES (?, ?)", [(band, self._number) for band in bands])
        return None

    @staticmethod
    def _whole(record: Record) -> str:
        return "\n".join((prompt_text(record), *reply_texts(record)))

    def _band_hashes(self, own: Shingles) -> list[int]:
        """One number per band of the signature, from -2^63 to 2^63 - 1."""
        import numpy as np

        signature = self._empty.copy()
        signature.update_batch((own >> np.uint64(32)).tolist())
        return [
            int.from_bytes(
                blake2b(start.to_bytes(4, "big") + signature.hashvalues[start:end].tobytes(), digest_size=8).digest(),
                "big",
                signed=True,
            )
            for start, end in self._bands
        ]

    def _candidates(self, bands: list[int]) -> list[tuple[int, str]]:
        """Earlier kept records with a band in common: number and text, most bands in common first."""
        marks = ",".join("?" * len(bands))
        rows = self._store.select(
            f"SELECT kept.number, kept.text FROM (SELECT number, COUNT(*) AS shared FROM band WHERE hash IN ({marks}) "
            "GROUP BY number ORDER BY shared DESC, number LIMIT ?) AS near JOIN kept ON kept.number = near.number "
            "ORDER BY near.shared DESC, kept.number",
            (*bands, _MAX_CANDIDATES),
        )
        return [(number, zlib.decompress(packed).decode("utf-8", "surrogatepass")) for number, packed in rows]
