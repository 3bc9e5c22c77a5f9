"""Texts as sets of n-grams: their Jaccard similarity, and the MinHash bands that similar ones share (Broder 1997).

The permutations and the choice of bands are datasketch's. Departures from its `MinHash`: n-grams are hashed all at once
by NumPy, not one by one in Python; permutations are applied to a block of them after the other, so that a long document
takes no more memory than a short one; and the first mixing of `affine32` is left out, which hashes as mixed as these do
not need.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal

from align.runtime.packages import require_package
from data_formats.cleaning.texts import folded
from data_formats.cleaning.units import units

Shingles = Any  # a NumPy array, which is imported where it is needed
_WEIGHTS = (0.1, 0.9)  # of false positives, which a second look removes, and of false negatives
_FACTOR = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: every code unit reaches the high bits
_BLOCK = 4096  # shingles that are permuted at once


@lru_cache(maxsize=1 << 16)
def _word_code(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _hashed(columns: Any) -> Any:
    """A polynomial in the columns, one row a value, modulo 2^64, mixed. (K, N) uint64 -> (N,) uint64."""
    import numpy as np

    factor = np.uint64(_FACTOR)
    hashes = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        hashes *= factor
        hashes += column
    hashes ^= hashes >> np.uint64(29)
    hashes *= factor
    return hashes


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
    codes += np.uint64(1)  # no unit is 0, or "\0a" were "a"
    last = len(codes) - n + 1
    hashes = _hashed([codes[at : last + at] for at in range(n)])
    hashes.sort()  # and not np.unique, which takes a hash table and eight times as long
    return hashes[np.concatenate(([True], hashes[1:] != hashes[:-1]))]


def jaccard(left: Shingles, right: Shingles) -> float:
    """Size of the intersection over that of the union of two sets of shingles; 0 of two empty ones."""
    import numpy as np

    common = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - common
    return common / union if union else 0.0


class MinHashBands:
    """Set of shingles -> one number a band. Sets of similarity J share one of b bands of r rows with the probability
    1 - (1 - J^r)^b; b and r are datasketch's choice for the threshold.

    Raises:
        MissingPackageError: datasketch is not installed.
        ValueError: no bands fit the threshold and num_perm.
    """

    def __init__(self, *, threshold: float, num_perm: int, seed: int):
        require_package("near-duplicate removal", "datasketch", "drop near_duplicates")
        import datasketch
        import numpy as np

        lsh = datasketch.MinHashLSH(threshold=threshold, num_perm=num_perm, weights=_WEIGHTS)
        self.bands, self.rows = lsh.b, lsh.r
        hashes = datasketch.MinHash(num_perm=self.bands * self.rows, seed=seed, scheme="affine32")
        factors, offsets = hashes.permutations
        self._factors, self._offsets = factors[:, np.newaxis], offsets[:, np.newaxis]

    def signature(self, own: Shingles) -> Any:
        """The least value of each permutation over a set that is not empty. Shape (bands * rows,), uint32."""
        import numpy as np

        lowest = np.full(self.bands * self.rows, np.iinfo(np.uint32).max, dtype=np.uint32)
        short = (own >> np.uint64(32)).astype(np.uint32)
        for at in range(0, len(short), _BLOCK):
            permuted = self._factors * short[at : at + _BLOCK]
            permuted += self._offsets
            np.minimum(lowest, permuted.min(axis=1), out=lowest)
        return lowest

    def __call__(self, own: Shingles) -> list[int]:
        """One number per band, from -2^63 to 2^63 - 1, of a set that is not empty."""
        import numpy as np

        columns = self.signature(own).astype(np.uint64).reshape(self.bands, self.rows).T
        return _hashed([np.arange(1, self.bands + 1, dtype=np.uint64), *columns]).view(np.int64).tolist()
