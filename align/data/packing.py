"""Packing: several short samples in one row, so that little of a batch is padding.

Best-fit decreasing (Johnson 1974): samples from the longest to the shortest, each into the fullest row that still has
room. No sample is cut and none is left out; equal lengths stay in the order of the samples, so the packs are always the
same. Which packs share an optimizer step is drawn anew every epoch by `align.trainers.sampling`.

A packed row says with `lengths` where its samples end; that their attention stays apart is the trainer's work.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain
from typing import Any

from align.data.encode import NO_LOSS, Row
from align.runtime.errors import AlignError
from data_formats.errors import DataError


class PackingError(AlignError, ValueError):
    """Rows or a model that cannot be packed."""


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of the samples of every pack; no pack is longer than `capacity`.

    Args:
        lengths: length of each sample in tokens.
        capacity: the most tokens a pack may hold.

    Returns:
        Packs in the order in which they were opened, samples from long to short.

    Raises:
        PackingError: a sample is empty or longer than `capacity`.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, pack) of packs that are not full, sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if not 0 < length <= capacity:
            raise PackingError(
                f"row {index} has {length} tokens and cannot be packed into rows of {capacity}: "
                "raise max_length, or drop or truncate it when encoding (on_overlong)"
            )
        at = bisect_left(rooms, (length, -1))
        if at == len(rooms):
            left, pack = capacity, len(packs)
            packs.append([])
        else:
            left, pack = rooms.pop(at)
        packs[pack].append(index)
        if left > length:
            insort(rooms, (left - length, pack))
    return packs


def whole_labels(row: Row) -> list[int]:
    """The row's labels; a row without any (a block of documents) has loss on every token but the first."""
    return row.get("labels") or [NO_LOSS, *row["input_ids"][1:]]


def whole_turns(row: Row) -> list[int]:
    """The turn of every label; a row without labels is one turn.

    Raises:
        DataError: labels without turns.
    """
    if "turns" not in row and row.get("labels"):
        raise DataError(
            "a row has labels but not the turn of each, which a loss_reduction other than token_mean needs; "
            "encode it with turns",
            field="turns",
        )
    return row["turns"] if "turns" in row else [1] * len(row["input_ids"])


class PackedRows(Sequence):
    """A list of rows seen as a list of packed rows, each joined when it is asked for. Rows of one part of a mixture
    (`part`) are packed with one another alone, so that a packed row has a part too.

    Args:
        rows: encoded rows (`align.data.encode`).
        max_length: tokens a packed row may hold; the length of the longest row when it is None.

    Raises:
        PackingError: no row at all, or one that does not fit.
    """

    def __init__(self, rows: Sequence[Row], max_length: int | None = None):
        lengths = [len(row["input_ids"]) for row in rows]
        if not lengths:
            raise PackingError("there are no rows to pack: add data or switch packing off")
        self.rows, self.max_length = rows, max_length or max(lengths)
        own: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            own.setdefault(row.get("part", ""), []).append(index)
        self.packs = [
            [indices[at] for at in pack]
            for indices in own.values()
            for pack in best_fit_decreasing([lengths[index] for index in indices], self.max_length)
        ]
        self.tokens = sum(lengths)
        self.with_turns = all("turns" in row or not row.get("labels") for row in rows)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids`, `labels` (-100 at each sample's first token), `lengths`, `turns` if all rows know them, and
        `part` where they have one."""
        rows = [self.rows[at] for at in self.packs[index]]
        packed = {
            "input_ids": list(chain.from_iterable(row["input_ids"] for row in rows)),
            "labels": list(chain.from_iterable([NO_LOSS, *whole_labels(row)[1:]] for row in rows)),
            "lengths": [len(row["input_ids"]) for row in rows],
        }
        if "part" in rows[0]:
            packed["part"] = rows[0]["part"]
        if self.with_turns:
            packed["turns"] = list(chain.from_iterable(whole_turns(row) for row in rows))
        return packed

    def report(self) -> dict[str, int | float]:
        """What packing did: `rows` in, `packs` out, their `max_length`, `tokens`, and `fill_rate`, the share of
        `packs * max_length` that is tokens."""
        fill = self.tokens / (len(self.packs) * self.max_length)
        return {
            "rows": len(self.rows),
            "packs": len(self.packs),
            "max_length": self.max_length,
            "tokens": self.tokens,
            "fill_rate": round(fill, 4),
        }
