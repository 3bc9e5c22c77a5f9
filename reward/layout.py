"""Several replies to one prompt in one row, so that the prompt is computed once.

A row is prompt, reply 1, reply 2, ...; each reply's positions continue from the prompt, and a tree mask lets a token
see its prompt and the earlier tokens of its own reply alone. Several such groups may stand in one row. The mask is an
explicit (B, 1, T, T), which `sdpa` takes as booleans and `eager` as numbers to add; other attentions are refused, since
they read positions or lengths and would silently mix the replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reward.errors import ModelFileError

TREE_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A prompt's ids and the ids of each reply to it."""

    prompt_ids: Sequence[int]
    reply_ids: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.prompt_ids) + sum(map(len, self.reply_ids))


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Indices a row: first fit, longest first; a row holds at most `width` tokens, or one longer group."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        row = next((at for at, left in enumerate(room) if left >= lengths[index]), None)
        if row is None:
            rows.append([])
            room.append(width)
            row = len(rows) - 1
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def tree_batch(groups: Sequence[TokenGroup], pad_id: int, width: int | None = None) -> dict[str, Tensor]:
    """Groups in rows, as `RewardModel.forward` takes them.

    Args:
        width: tokens a row may hold; default: the longest group.

    Returns:
        `input_ids`, `position_ids` (B, T) int64, `attention_mask` (B, 1, T, T) bool, `members` (N, T) bool,
        `rows` and `starts` (N,) int64: row and first column of each reply, group by group.
    """
    lengths = [len(group) for group in groups]
    rows = fill_rows(lengths, width or max(lengths))
    length = max(sum(lengths[index] for index in row) for row in rows)
    ids, positions, owners, parts = ([[fill] * length for _ in rows] for fill in (pad_id, 0, -1, 0))
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for row, indices in enumerate(rows):
        at = 0
        for index in indices:
            group, first = groups[index], len(groups[index].prompt_ids)
            for part, tokens in enumerate((group.prompt_ids, *group.reply_ids)):
                end, offset = at + len(tokens), first if part else 0
                ids[row][at:end] = tokens
                positions[row][at:end] = range(offset, offset + len(tokens))
                owners[row][at:end] = [index] * len(tokens)
                parts[row][at:end] = [part] * len(tokens)
                places[index, part] = (row, at)
                at = end
    owners_BT, parts_BT = torch.tensor(owners), torch.tensor(parts)
    branch_BTT = (parts_BT[:, None, :] == 0) | (parts_BT[:, None, :] == parts_BT[:, :, None])
    sees_BTT = (owners_BT[:, None, :] == owners_BT[:, :, None]) & branch_BTT
    replies = [(index, part) for index, group in enumerate(groups) for part in range(1, len(group.reply_ids) + 1)]
    rows_N = torch.tensor([places[reply][0] for reply in replies])
    index_N, part_N = torch.tensor(replies).unbind(1)
    own_NT = parts_BT[rows_N]
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "attention_mask": sees_BTT.tril()[:, None],
        "members": (owners_BT[rows_N] == index_N[:, None]) & ((own_NT == 0) | (own_NT == part_N[:, None])),
        "rows": rows_N,
        "starts": torch.tensor([places[reply][1] for reply in replies]),
    }


def tree_problem(config: Any, accepted: frozenset[str]) -> str | None:
    """Why a backbone cannot share prompts, None where it can."""
    text = config.get_text_config()
    attention = getattr(text, "_attn_implementation", None)
    if attention not in TREE_ATTENTION:
        return f"attn_implementation '{attention}' takes no tree mask; use {' or '.join(TREE_ATTENTION)}"
    if "position_ids" not in accepted:
        return "its forward takes no position_ids"
    if any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or ()):
        return "some of its layers do not attend to the whole prompt (layer_types)"
    return None


def tree_mask(sees_B1TT: Tensor, config: Any, accepted: frozenset[str], dtype: torch.dtype) -> Tensor:
    """The mask in the form that the backbone's attention takes.

    Raises:
        ModelFileError: it takes none.
    """
    if problem := tree_problem(config, accepted):
        raise ModelFileError(f"this model cannot share prompts: {problem}, or set share_prompts to false")
    if config.get_text_config()._attn_implementation == "sdpa":
        return sees_B1TT
    return torch.zeros_like(sees_B1TT, dtype=dtype).masked_fill(~sees_B1TT, torch.finfo(dtype).min)
