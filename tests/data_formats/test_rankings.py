"""People's rankings in the shapes that people write."""

import csv
import json

import pytest

from data_formats.errors import DataError, EmptyDatasetError, MissingFileError
from data_formats.rankings import read_rankings
from data_formats.records import Message


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def orders(found):
    """(annotator, {model: (text, rank)}) a ranking."""
    return [(one.annotator, {r.model: (r.text, r.rank) for r in one.replies}) for one in found.rankings]


def test_a_row_a_reply_in_any_order_with_ties_and_what_is_left_out(tmp_path):
    rows = [
        {"prompt": prompt, "annotator": who, "model": model, "rank": rank, "category": "maths"}
        for prompt, who, model, rank in [
            *(("q", "ann", "a", 1), ("q", "bob", "a", 2), ("q", "ann", "b", 1), ("r", "ann", "a", 1)),
            *(("q", "bob", "b", 1), ("q", "ann", "c", 2), ("q", "", "a", 1), ("q", "bob", "c", "")),
        ]
    ]
    found = read_rankings(table(tmp_path / "votes.csv", rows))
    assert orders(found) == [
        ("ann", {"a": (None, 1.0), "b": (None, 1.0), "c": (None, 2.0)}),
        ("bob", {"a": (None, 2.0), "b": (None, 1.0)}),
    ]
    assert found.rankings[0].prompt == (Message("user", "q"),) and found.rankings[0].category == "maths"
    assert found.left_out == {"no annotator": 1, "no rank": 1, "only one reply ranked": 1}


WIDE = {"prompt": "q", "annotator": "ann"}


@pytest.mark.parametrize(
    ("row", "order"),
    [
        ({"models": ["a", "b"], "ranks": [2, 1]}, {"a": (None, 2), "b": (None, 1)}),
        ({"models": ["a", "b"], "replies": ["x", "y"], "scores": [0.5, 7]}, {"a": ("x", -0.5), "b": ("y", -7)}),
        ({"replies": {"a": "x", "b": "y"}, "ranks": {"b": 1, "a": 1}}, {"a": ("x", 1), "b": ("y", 1)}),
        ({"ranks": {"b": 1, "a": 2}}, {"b": (None, 1), "a": (None, 2)}),
        ({"responses": [{"text": "x", "rank": 2}, {"text": "y", "rank": 1}]}, {"1": ("x", 2), "2": ("y", 1)}),
        ({"replies": [{"reply": "x", "model": "a", "score": 1}, {"reply": "y", "model": "b", "score": 2}]},
         {"a": ("x", -1), "b": ("y", -2)}),
        ({"replies": ["x", "y", "z"], "ranking": "B > A = C"}, {"1": ("x", 2), "2": ("y", 1), "3": ("z", 2)}),
        ({"ranking": ["b", ["a", "c"]]}, {"b": (None, 1), "a": (None, 2), "c": (None, 2)}),
        ({"models": ["a", "b", "c"], "ranks": [1, None, 2]}, {"a": (None, 1), "c": (None, 2)}),
        ({"rank_7b": 1, "rank_14b": 2, "reply_7b": "x", "reply_14b": "y"}, {"7b": ("x", 1), "14b": ("y", 2)}),
        ({"model_1": "a", "model_2": "b", "score_1": 3, "score_2": 3}, {"a": (None, -3), "b": (None, -3)}),
        ({"rankA": 2, "rankB": 1, "responseA": "x", "responseB": "y"}, {"A": ("x", 2), "B": ("y", 1)}),
    ],
)  # fmt: skip
def test_a_row_a_ranking_in_lists_and_in_columns(tmp_path, row, order):
    assert orders(read_rankings(jsonl(tmp_path / "votes.jsonl", [WIDE | row]))) == [("ann", order)]
    cells = {name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in (WIDE | row).items()}
    assert orders(read_rankings(table(tmp_path / "votes.csv", [cells]))) == [("ann", order)]


TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
OTHER = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}]
ARENA = {"model_a": "m", "model_b": "n", "judge": "arena_user_1", "conversation_a": TALK, "conversation_b": OTHER}


@pytest.mark.parametrize(
    ("row", "first", "second"),
    [
        (ARENA | {"winner": "model_b"}, ("x", 2), ("y", 1)),
        (ARENA | {"winner": "model_a", "turn": 1}, ("x", 1), ("y", 2)),
        (ARENA | {"winner": "tie"}, ("x", 1), ("y", 1)),
        (ARENA | {"winner": "tie (bothbad)"}, ("x", 1), ("y", 1)),
        ({"prompt": "q", "model_a": "m", "model_b": "n", "winner": "n", "rater": "arena_user_1"}, (None, 2), (None, 1)),
        ({"prompt": '["q"]', "response_a": '["x"]', "response_b": '["y"]', "model_a": "m", "model_b": "n",
          "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1, "worker": "arena_user_1"}, ("x", 1), ("y", 1)),
        ({"prompt": "q", "response_1": "x", "response_2": "y", "model_1": "m", "model_2": "n", "overall_preference": -2,
          "annotator": "arena_user_1"}, ("x", 1), ("y", 2)),
    ],
)  # fmt: skip
def test_votes_on_pairs_as_the_arenas_write_them(tmp_path, row, first, second):
    found = read_rankings(jsonl(tmp_path / "votes.jsonl", [row]))
    assert orders(found) == [("arena_user_1", {"m": first, "n": second})]
    assert found.rankings[0].prompt == (Message("user", "q"),)


def test_a_vote_without_verdict_and_prompts_that_differ_are_counted(tmp_path):
    later = [*OTHER, {"role": "user", "content": "more"}, {"role": "assistant", "content": "z"}]
    earlier = [*TALK, {"role": "user", "content": "more"}, {"role": "assistant", "content": "z"}]
    rows = [
        {name: value for name, value in ARENA.items() if name != "judge"} | {"winner": "model_a"},
        ARENA | {"winner": "model_a"},
        ARENA | {"winner": None},
        ARENA | {"winner": "tie", "conversation_a": earlier, "conversation_b": later},
    ]
    found = read_rankings(jsonl(tmp_path / "votes.jsonl", rows))
    assert len(found.rankings) == 1 and found.left_out == {"no annotator": 1, "no verdict": 1, "prompts differ": 1}


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([WIDE | {"model": "a", "rank": 1}, WIDE | {"model": "b", "rank": "first"}], DataError,
         r"v\.jsonl, line 2, field 'rank': expected a finite number, found 'first'"),
        ([WIDE | {"model": "a", "rank": 1}, WIDE | {"model": "a", "rank": 2}], DataError,
         r"line 2: the reply of a has two ranks in one ranking; name the annotators"),
        ([WIDE | {"models": ["a", "b"], "ranks": [1]}], DataError, r"field 'ranks': expected 2 numbers, one a reply"),
        ([WIDE | {"models": ["a", "b"], "replies": ["x"], "ranks": [1, 2]}], DataError, r"field 'replies': expected 2"),
        ([WIDE | {"models": ["a", "b"], "ranking": [1, 0]}], DataError, r"may be ranks or an order; call ranks"),
        ([WIDE | {"models": ["a", "b"], "ranking": "a > z"}], DataError, r"'z' is none of a, b"),
        ([{"model": "a", "rank": 1, "annotator": "x"}], DataError, r"field 'prompt': there is no prompt; found model"),
        ([WIDE | {"text": "a"}], DataError, r"line 1: no ranking: expected a `rank`"),
        ([ARENA | {"winner": "model_z"}], DataError, r"field 'winner': 'model_z' names neither"),
        ([WIDE | {"model": "a", "rank": 1}], EmptyDatasetError, r"nobody ranked two replies .*one reply ranked: 1"),
        ([], EmptyDatasetError, "the file holds no rows"),
    ],
)  # fmt: skip
def test_errors_name_file_row_and_field(tmp_path, rows, error, words):
    with pytest.raises(error, match=words):
        read_rankings(jsonl(tmp_path / "v.jsonl", rows))


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.csv"):
        read_rankings(tmp_path / "none.csv")
