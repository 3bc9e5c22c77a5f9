"""Encoded rows -> the batches that SFT, the pairwise reward model and DPO train on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.data.encode import NO_LOSS, PairRow, Row
from align.data.packing import whole_labels, whole_turns
from align.data.preferences import PreferenceRow
from align.runtime.padding import pad_right, padded


class CausalCollator:
    """Rows of `encode_demonstrations` -> `input_ids`, `attention_mask`, `labels`, each (B, T), padded on the right.

    Rows without `labels` (blocks of documents) have loss on every token but the first. Two more tensors (B, T) come
    where they mean something: `turns` when `with_turns` is set (0 in the padding), and `segments` for packed rows
    (`align.data.packing`): the number of the sample inside its row, from 1, 0 in the padding.

    Args:
        pad_id: what `input_ids` are padded with.
        with_turns: give the turn of every label, which all loss reductions but "token_mean" need.

    Raises:
        DataError: `with_turns`, and a row has labels but no turns.
    """

    def __init__(self, pad_id: int, *, with_turns: bool = False):
        self.pad_id, self.with_turns = pad_id, with_turns

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        input_ids_BT, mask_BT = pad_right([row["input_ids"] for row in rows], self.pad_id)
        labels_BT = padded([whole_labels(row) for row in rows], NO_LOSS)
        batch = {"input_ids": input_ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        if self.with_turns:
            batch["turns"] = padded([whole_turns(row) for row in rows], 0)
        if any("lengths" in row for row in rows):
            batch["segments"] = padded([_segments(row) for row in rows], 0)
        return batch


def _segments(row: Row) -> list[int]:
    lengths = row.get("lengths", [len(row["input_ids"])])
    return [number for number, length in enumerate(lengths, 1) for _ in range(length)]


class PairCollator:
    """Rows of `encode_comparisons` -> `input_ids`, `attention_mask` of shape (2B, T): all chosen, then all rejected."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[PairRow]) -> dict[str, Tensor]:
        sequences = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        input_ids, mask = pad_right(sequences, self.pad_id)
        return {"input_ids": input_ids, "attention_mask": mask}


class PreferenceCollator:
    """Rows of `encode_preferences` -> what `trl.DPOTrainer` reads, all chosen, then all rejected, padded on the right:
    `input_ids`, `attention_mask` and `completion_mask` (1 = counts), each (2B, T); where the rows have them also
    `ref_chosen_logps` and `ref_rejected_logps`, float32 (B,)."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[PreferenceRow]) -> dict[str, Tensor]:
        sides = [
            (row["prompt_ids"], row[f"{of}_ids"], row[f"{of}_mask"]) for of in ("chosen", "rejected") for row in rows
        ]
        input_ids, mask = pad_right([[*prompt, *reply] for prompt, reply, _ in sides], self.pad_id)
        counts = padded([[0] * len(prompt) + list(counted) for prompt, _, counted in sides], 0)
        batch = {"input_ids": input_ids, "attention_mask": mask, "completion_mask": counts}
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if all(name in row for row in rows):
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch
