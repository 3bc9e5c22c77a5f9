"""Near-duplicates: MinHash bands find candidates (LSH, Broder 1997; datasketch), the texts decide.

Departures from datasketch's `MinHashLSH`: its tables of Python sets hold several KB of memory per record, here the
bands lie on disk (see `Store`); and a candidate counts only when the exact Jaccard similarity of the two texts'
shingles, counted on the texts themselves, reaches the threshold. So nothing is dropped by a wrong estimate; a duplicate
that shares no band with the record it repeats is missed, and the bands are chosen so that this is rare. Of a band that
many texts share, such as rows of one template, the first ones alone are looked at: a row costs the same, however many
came before.
"""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Literal

from data_formats.cleaning.shingles import MinHashBands, jaccard, shingles
from data_formats.cleaning.steps import Finding
from data_formats.cleaning.store import Store
from data_formats.cleaning.texts import prompt_text, reply_texts
from data_formats.records import Record

MOST = 64  # texts of a band, and candidates that are looked at again; those with most bands in common come first


class NearIndex:
    """Texts of which none is nearly an earlier one, on disk: leader clusters, by one pass over texts in their order.

    On disk, per leader: the compressed text and about 25 bytes for each band (350 for the 14 of the defaults); memory
    is flat (see `Store`).

    Args, errors: see `NearDuplicates`.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        num_perm: int = 128,
        ngram: int = 5,
        unit: Literal["char", "word"] = "char",
        seed: int = 1,
    ):
        self._threshold, self._ngram, self._unit = threshold, ngram, unit
        self._bands = MinHashBands(threshold=threshold, num_perm=num_perm, seed=seed)
        self._number = 0
        self._store = Store(
            "band (hash INTEGER, number INTEGER, PRIMARY KEY (hash, number)) WITHOUT ROWID",
            "leader (number INTEGER PRIMARY KEY, text BLOB)",
        )

    def leader(self, text: str) -> tuple[int, float]:
        """The earlier leader that a text is near, by its number among the texts (from 1), and their similarity; or the
        text's own number and 1, and it is a leader from now on. An empty text is its own leader and nobody else's.
        """
        self._number += 1
        own = shingles(text, self._ngram, self._unit)
        if not len(own):
            return self._number, 1.0
        shared: Counter[int] = Counter()
        open_bands = []
        for band in self._bands(own):
            numbers = self._store.select("SELECT number FROM band WHERE hash = ? ORDER BY number LIMIT ?", (band, MOST))
            shared.update(number for (number,) in numbers)
            if len(numbers) < MOST:
                open_bands.append(band)
        for number in sorted(shared, key=lambda number: (-shared[number], number))[:MOST]:
            other = shingles(self._text(number), self._ngram, self._unit)
            if (similarity := jaccard(own, other)) >= self._threshold:
                return number, similarity
        packed = zlib.compress(text.encode("utf-8", "surrogatepass"), 1)
        self._store.add("INSERT INTO leader VALUES (?, ?)", (self._number, packed))
        self._store.add_many("INSERT OR IGNORE INTO band VALUES (?, ?)", [(band, self._number) for band in open_bands])
        return self._number, 1.0

    def _text(self, number: int) -> str:
        ((packed,),) = self._store.select("SELECT text FROM leader WHERE number = ?", (number,))
        return zlib.decompress(packed).decode("utf-8", "surrogatepass")


class NearDuplicates:
    """Drops a record whose text is nearly that of an earlier kept one; the first stays, so the order matters.

    Disk and memory: see `NearIndex`.

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
    compares = True

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
        self.looks_for = f"texts that share {threshold:.0%} of their {unit} {ngram}-grams with an earlier one (MinHash)"
        self._of, self._seen = of, 0
        self._index = NearIndex(threshold=threshold, num_perm=num_perm, ngram=ngram, unit=unit, seed=seed)

    def check(self, record: Record) -> Finding | None:
        prompt = prompt_text(record)
        text = prompt if self._of == "prompt" and prompt else "\n".join((prompt, *reply_texts(record)))
        self._seen += 1
        number, similarity = self._index.leader(text)
        if number == self._seen:
            return None
        return Finding("drop", "near-duplicate", f"{number} ~ {self._seen} ({similarity:.2f}): {text}")
