"""Padding: hand-laid tensors; masks from lengths even where ids equal the pad id."""

import torch

from align.data.collate import CausalCollator, PairCollator
from align.runtime.padding import pad_left, pad_right

PAD = 0


def same(tensor, rows):
    return tensor.dtype == torch.int64 and tensor.tolist() == rows


def test_padding_on_either_side():
    ids, mask = pad_right([[5], [6, PAD, 7]], PAD)
    assert same(ids, [[5, PAD, PAD], [6, PAD, 7]]) and same(mask, [[1, 0, 0], [1, 1, 1]])
    ids, mask = pad_left([[5, PAD], [6, 7, 8]], PAD)
    assert same(ids, [[PAD, 5, PAD], [6, 7, 8]]) and same(mask, [[0, 1, 1], [1, 1, 1]])


def test_no_rows_give_empty_tensors():
    ids, mask = pad_right([], PAD)
    assert ids.shape == mask.shape == (0, 0)
    ids, mask = pad_left([[], []], PAD)
    assert ids.shape == mask.shape == (2, 0)


def test_causal_collator_pads_labels_with_no_loss():
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, {"input_ids": [4, PAD], "labels": [-100, PAD]}]
    batch = CausalCollator(PAD)(rows)
    assert same(batch["input_ids"], [[1, 2, 3], [4, PAD, PAD]])
    assert same(batch["attention_mask"], [[1, 1, 1], [1, 1, 0]])
    assert same(batch["labels"], [[-100, -100, 3], [-100, PAD, -100]])


def test_blocks_without_labels_have_loss_on_all_but_the_first_token():
    batch = CausalCollator(PAD)([{"input_ids": [1, 2, 3]}, {"input_ids": [4]}])
    assert same(batch["labels"], [[-100, 2, 3], [-100, -100, -100]])


def test_pair_collator_puts_all_chosen_before_all_rejected():
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [3]}, {"chosen_ids": [4], "rejected_ids": [5, 6, 7]}]
    batch = PairCollator(PAD)(rows)
    assert same(batch["input_ids"], [[1, 2, PAD], [4, PAD, PAD], [3, PAD, PAD], [5, 6, 7]])
    assert same(batch["attention_mask"], [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]])


def test_turns_come_when_asked_for_and_segments_with_packed_rows():
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4], "turns": [0, 1, 0, 1], "lengths": [2, 2]},
        {"input_ids": [5, 6], "labels": [-100, 6], "turns": [0, 3]},
    ]
    batch = CausalCollator(PAD, with_turns=True)(rows)
    assert same(batch["turns"], [[0, 1, 0, 1], [0, 3, 0, 0]])
    assert same(batch["segments"], [[1, 1, 2, 2], [1, 1, 0, 0]])
    plain = CausalCollator(PAD)(rows[1:])
    assert plain.keys() == {"input_ids", "attention_mask", "labels"}
    block = CausalCollator(PAD, with_turns=True)([{"input_ids": [1, 2, 3]}])
    assert same(block["turns"], [[1, 1, 1]])
