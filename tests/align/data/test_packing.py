"""Packing: hand-made packs, and what holds for any lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.data.packing import PackedRows, PackingError, best_fit_decreasing
from data_formats.errors import DataError

ROWS = [
    {"input_ids": [1, 2], "labels": [-100, 2], "turns": [0, 1]},
    {"input_ids": [3, 4, 5, 6], "labels": [3, -100, 5, 6], "turns": [1, 0, 2, 2]},
    {"input_ids": [7], "labels": [-100], "turns": [0]},
]


def test_best_fit_by_hand():
    # 7 opens a pack (3 left), 6 another (4 left); 4 fills the second; 3 fills the first; 2 and 2 share a third
    assert best_fit_decreasing([2, 7, 3, 6, 4, 2], 10) == [[1, 2], [3, 4], [0, 5]]
    # the fullest row that has room: 3 goes to the row of 7 (3 left), not to that of 6 (4 left)
    assert best_fit_decreasing([6, 7, 3], 10) == [[1, 2], [0]]
    assert best_fit_decreasing([], 10) == []


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 90))
def test_every_row_is_in_one_pack_none_overflows_and_nothing_is_drawn(lengths, capacity):
    packs = best_fit_decreasing(lengths, capacity)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in pack) for pack in packs]
    assert all(0 < tokens <= capacity for tokens in filled)
    assert packs == best_fit_decreasing(lengths, capacity)
    if len(packs) > 1:  # no two packs that would fit into one
        lowest, next_lowest = sorted(filled)[:2]
        assert lowest + next_lowest > capacity


def test_a_row_that_cannot_fit_is_one_clear_error():
    with pytest.raises(PackingError, match=r"row 1 has 9 tokens and cannot be packed into rows of 8: raise max_length"):
        best_fit_decreasing([3, 9], 8)
    with pytest.raises(PackingError, match="row 0 has 0 tokens"):
        best_fit_decreasing([0], 8)
    with pytest.raises(PackingError, match="no rows to pack"):
        PackedRows([])


def test_packed_rows_join_their_samples():
    packed = PackedRows(ROWS, 5)
    assert len(packed) == 2
    assert packed[0] == {
        "input_ids": [3, 4, 5, 6, 7],
        "labels": [-100, -100, 5, 6, -100],  # the first label of a sample has nothing of it before it
        "lengths": [4, 1],
        "turns": [1, 0, 2, 2, 0],
    }
    assert packed[1] == {"input_ids": [1, 2], "labels": [-100, 2], "lengths": [2], "turns": [0, 1]}
    assert [row["input_ids"] for row in packed] == [[3, 4, 5, 6, 7], [1, 2]]  # ends like a list


def test_capacity_is_the_longest_row_unless_given_and_the_report_counts():
    packed = PackedRows(ROWS)
    assert packed.report() == {"rows": 3, "packs": 2, "max_length": 4, "tokens": 7, "fill_rate": 0.875}
    assert PackedRows(ROWS, 7).report()["fill_rate"] == 1.0


def test_blocks_have_loss_on_all_but_their_first_token_and_are_one_turn():
    packed = PackedRows([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}], 5)
    assert packed[0]["labels"] == [-100, 2, 3, -100, 5] and packed[0]["turns"] == [1] * 5


def test_turns_are_left_out_where_a_row_does_not_know_them():
    from align.data.collate import CausalCollator

    packed = PackedRows([ROWS[0], {"input_ids": [4, 5], "labels": [-100, 5]}], 4)
    assert "turns" not in packed[0]
    with pytest.raises(DataError, match="field 'turns': a row has labels but not the turn of each"):
        CausalCollator(0, with_turns=True)([packed[0]])
