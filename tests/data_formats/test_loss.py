"""Turns that are read but not trained on: every spelling, and what becomes of the flag on the way."""

import json
from collections import Counter

import pytest

from data_formats import Comparison, DataError, Demonstration, Message, Prompt, Scored, read, write_jsonl
from data_formats.chatml import MASKS, render
from data_formats.cleaning import ExactDuplicates
from data_formats.cleaning.texts import wanted_texts
from data_formats.ghost import instruct_every_turn
from data_formats.loss import WITHOUT_LOSS
from data_formats.turns import read_turns

U, A, N = Message("user", "q"), Message("assistant", "r"), Message("assistant", "n", loss=False)
RAW = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "n"}]
MORE = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]


def read_row(tmp_path, row, kind):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return read(tmp_path / "x.jsonl", kind)


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss_mask", "loss", "train", "trainable", "training"])
@pytest.mark.parametrize(
    ("value", "loss"),
    [
        (0, False),
        (0.0, False),
        (False, False),
        ("0", False),
        ("False", False),
        (1, True),
        (1.0, True),
        (True, True),
        ("true", True),
        (None, True),
        ("", True),  # an empty cell of a CSV file
    ],
)
def test_every_spelling(key, value, loss):
    openai = [RAW[0], RAW[1] | {key: value}]
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "n", key: value}]
    for turns in (openai, sharegpt):
        assert read_turns(turns, "m", Counter()) == (U, Message("assistant", "n", loss=loss))


@pytest.mark.parametrize(
    ("turn", "field", "found"),
    [
        ({"weight": 0.5}, r"m\[1\].weight", "found 0.5"),
        ({"loss": "some"}, r"m\[1\].loss", "found 'some'"),
        ({"loss_mask": [0, 1]}, r"m\[1\].loss_mask", r"found \[0, 1\]"),
        ({"train": 2}, r"m\[1\].train", "found 2"),
        ({"weight": 1, "train": False}, r"m\[1\]", "contradict each other: weight 1, train False"),
        ({"train_detail": [{"begin_offset": 0}]}, r"m\[1\].train_detail", "not supported"),
        ({"mask": True}, r"m\[1\].mask", "not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(turn, field, found):
    with pytest.raises(DataError, match=f"field '{field}'.*{found}"):
        read_turns([RAW[0], RAW[1] | turn], "m", Counter())


def test_only_an_assistants_turn_asks_for_loss():
    assert read_turns([RAW[0] | {"weight": 0, "train": "false"}], "m", Counter()) == (U,)
    with pytest.raises(DataError, match=r"field 'm\[0\]': only an assistant's turn"):
        read_turns([RAW[0] | {"train": True}], "m", Counter())


def test_a_row_without_any_turn_with_loss_is_dropped(tmp_path):
    for row in ({"messages": [RAW[0], RAW[1] | {"weight": 0}]}, {"messages": RAW, "train": False}):
        assert read_row(tmp_path, row, Demonstration).report.dropped == {WITHOUT_LOSS: 1}
    assert len(read_row(tmp_path, {"messages": RAW, "weight": 1.0}, Demonstration).records) == 1
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0}
    assert read_row(tmp_path, pair, Comparison).report.dropped == {WITHOUT_LOSS: 1}
    labelled = {"prompt": "q", "completion": "a", "label": True, "train": 0}
    assert read_row(tmp_path, labelled, Scored).report.dropped == {WITHOUT_LOSS: 1}


def test_two_replies_in_a_row_of_which_one_has_loss_cannot_become_one(tmp_path):
    turns = [RAW[0], RAW[1] | {"weight": 0}, MORE[1]]
    report = read_row(tmp_path, {"messages": turns}, Demonstration).report
    assert report.dropped == {"two replies in a row, one with loss and one without": 1}
    turns[2] = turns[2] | {"weight": 0}
    both = read_row(tmp_path, {"messages": [*turns, *MORE]}, Demonstration).records[0]
    assert [(turn.content, turn.loss) for turn in both.messages[1::2]] == [("n\n\nr", False), ("r", True)]


@pytest.mark.parametrize("kind", [Prompt, Comparison, Scored])
def test_context_carries_no_flag(tmp_path, kind):
    turns = [RAW[0], RAW[1] | {"weight": 0}, MORE[0]]
    row = {"prompt": turns, "chosen": "a", "rejected": "b"}
    if kind is Scored:
        row = {"messages": [*turns, MORE[1] | {"weight": 0}], "label": 1}
    elif kind is Prompt:
        row = {"messages": turns}
    (record,) = read_row(tmp_path, row, kind).records
    context = record.messages if kind is Prompt else record.prompt
    assert len(context) == 3 and all(turn.loss for turn in context)


def test_a_pair_may_mark_its_context_on_one_side_alone(tmp_path):
    chosen = [RAW[0], RAW[1] | {"weight": 0}, *MORE]
    row = {"chosen": chosen, "rejected": [*RAW, MORE[0], MORE[1] | {"content": "s"}]}
    assert [(one.chosen, one.rejected) for one in read_row(tmp_path, row, Comparison).records] == [("r", "s")]


@pytest.mark.parametrize("mask", MASKS)
def test_it_has_no_loss_under_any_mask(mask):
    pieces = render((U, N, U, A), mask=mask)
    text = "".join(piece.text if piece.loss else "·" * len(piece.text) for piece in pieces)
    plain = "".join(piece.text for piece in render((U, N, U, A), mask=mask))
    start, end = plain.index("<|im_start|>assistant"), plain.index("<|im_start|>user", 1)
    assert set(text[start:end]) == {"·"}
    before, after = (render((U, turn, U, A), mask=mask) for turn in (N, Message("assistant", "n")))
    assert [(one.text, one.control) for one in before] == [(one.text, one.control) for one in after]
    assert any(piece.loss for piece in pieces[-4:])


def test_the_flag_survives_writing_cleaning_and_ghost_attention(tmp_path):
    demos = [Demonstration((U, N, U, A)), Demonstration((U, Message("assistant", "n"), U, A))]
    write_jsonl(tmp_path / "x.jsonl", demos)
    assert read(tmp_path / "x.jsonl", Demonstration).records == demos
    step = ExactDuplicates()
    assert [step.check(demo) for demo in demos] == [None, None]  # the same text, not the same lesson
    assert [wanted_texts(demo) for demo in demos] == [("r",), ("n", "r")]
    assert [turn.loss for turn in instruct_every_turn(demos[0].messages, "Be brief.")] == [True, False, True, True]


def test_the_last_exchange_is_one_that_is_trained():
    assert Demonstration((U, A, U, N)).last_exchange() == ((U,), "r")
    assert Demonstration((U, N)).last_exchange() is None
