"""How the rows of a micro-batch are handed to a model, and where in what it says the states of their replies are.

Either all in one row without padding, each prompt once (`reward.flat`), or as they are, padded on the right. Which is
right for a model is `reward.flat.takes_flat_rows`'s to say; log-probabilities, values and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from align.runtime.devices import index_on
from reward.flat import Parts, flat_inputs, ranges


class RowSize(NamedTuple):
    """`prompt`: a number that rows with the very same prompt have in common; tokens of the prompt, and of the row."""

    prompt: int
    prompt_length: int
    length: int

    @property
    def reply_length(self) -> int:
        """Tokens of the reply."""
        return self.length - self.prompt_length


@dataclass(frozen=True, slots=True)
class ModelRows:
    """K actions, the tokens of all replies of B rows.

    Attributes:
        inputs: what a model's forward takes.
        states_K: where the states are in which they were taken: flat indices into the inputs' `input_ids`.
        ids_K: the actions. places_K: where they belong: flat indices into (B, S).
        shape: (B, S).
    """

    inputs: dict[str, Any]
    states_K: Tensor
    ids_K: Tensor
    places_K: Tensor
    shape: tuple[int, int]

    def placed(self, answers_KA: Tensor) -> Tensor:
        """answers_BSA, 0 where there is no action."""
        rows, states = self.shape
        whole = answers_KA.new_zeros(rows * states, *answers_KA.shape[1:])
        return whole.index_copy(0, self.places_K, answers_KA).unflatten(0, self.shape)


def padded_rows(ids_BT: Tensor, attention_mask_BT: Tensor, sizes: Sequence[RowSize]) -> ModelRows:
    """The rows as they are."""
    width, order = ids_BT.shape[1], range(len(sizes))
    starts = [row * width + sizes[row].prompt_length - 1 for row in order]
    states_K = ranges(starts, [size.reply_length for size in sizes])
    return _asked({"input_ids": ids_BT, "attention_mask": attention_mask_BT}, states_K, ids_BT, sizes, order)


def flat_rows(ids_BT: Tensor, sizes: Sequence[RowSize]) -> ModelRows:
    """All rows in one, those of one prompt behind it."""
    width = ids_BT.shape[1]
    groups: dict[int, list[int]] = {}
    for row, size in enumerate(sizes):
        groups.setdefault(size.prompt, []).append(row)
    sources, lengths = [], []  # of every part: where it begins in ids_BT
    for first, *others in groups.values():
        rows = [first, *others]
        sources += [first * width, *(row * width + sizes[row].prompt_length for row in rows)]
        lengths.append((sizes[first].prompt_length, [sizes[row].reply_length for row in rows]))
    parts, order = Parts(lengths), [row for rows in groups.values() for row in rows]
    ids_T = ids_BT.flatten()[index_on(ids_BT.device, ranges(sources, parts.lengths))]
    _, cut_B, begin_B, end_B = parts.replies_4N
    starts_2B = torch.stack([cut_B - 1, begin_B])  # the prompt's last token, then the reply's but the last
    lengths_2B = torch.stack([torch.ones_like(cut_B), end_B - begin_B - 1])
    states_K = ranges(starts_2B.T.flatten(), lengths_2B.T.flatten())
    return _asked(flat_inputs(ids_T, parts), states_K, ids_BT, sizes, order)


def _asked(
    inputs: dict[str, Any], states_K: Tensor, ids_BT: Tensor, sizes: Sequence[RowSize], order: Sequence[int]
) -> ModelRows:
    """`states_K` row by row in `order`."""
    width, device = ids_BT.shape[1], ids_BT.device
    starts, lengths = zip(*((sizes[row].prompt_length, sizes[row].reply_length) for row in order), strict=True)
    rows_B, starts_B, lengths_B = torch.tensor(order), torch.tensor(starts), torch.tensor(lengths)
    actions_K, places_K = (
        index_on(device, ranges(rows_B * columns + starts_B + first, lengths_B))
        for columns, first in ((width, 0), (width - 1, -1))
    )
    states_K = index_on(device, states_K)
    return ModelRows(inputs, states_K, ids_BT.flatten()[actions_K], places_K, (len(sizes), width - 1))
