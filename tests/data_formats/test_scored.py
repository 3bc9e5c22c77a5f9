"""Scored replies, and the comparisons that follow from them."""

import json

import pytest

from data_formats import Comparison, Demonstration, Message, Reply, Scored, Step, read
from data_formats.scored import vote_score

Q = (Message("user", "q"),)


def one(tmp_path, row, kind):
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    return read(tmp_path / "x.jsonl", kind)


@pytest.mark.parametrize(
    ("votes", "accepted", "score"),
    [(0, False, 0), (1, False, 1), (2, False, 2), (7, True, 4), (4, False, 2), (5, False, 3), (-3, False, -1)],
)
def test_votes(votes, accepted, score):
    assert vote_score(votes, accepted) == score


def test_posts_give_all_pairs_but_ties(tmp_path):
    answers = [
        {"text": "best", "score": 7, "accepted": True},
        {"text": "bad", "score": -2},
        {"text": "one", "score": 1},
        {"text": "also", "score": 1},
    ]
    result = one(tmp_path, {"question": "q", "answers": answers}, Comparison)
    assert [(pair.chosen, pair.rejected, pair.grade) for pair in result.records] == [
        ("best", "bad", 5.0),
        ("best", "one", 3.0),
        ("best", "also", 3.0),
        ("one", "bad", 2.0),
        ("also", "bad", 2.0),
    ]
    assert (result.report.used, result.report.left_out) == (1, {"pairs of equal score": 1})


@pytest.mark.parametrize(
    ("row", "replies"),
    [
        ({"prompt": "q", "completion": "r", "label": True}, (Reply("r", 1.0),)),
        (
            {"instruction": "q", "completions": [{"response": "r", "overall_score": 7}, {"response": "s"}]},
            (Reply("r", 7.0), Reply("s")),
        ),
        (
            {"prompt": "q", "edited": "e", "chosen": "c", "rejected": "r"},
            (Reply("e", 2.0), Reply("c", 1.0), Reply("r", 0.0)),
        ),
        (
            {
                "question": {"problem": "q"},
                "label": {
                    "steps": [
                        {
                            "completions": [{"text": "a", "rating": 1}, {"text": "b"}],
                            "chosen_completion": 0,
                        },
                        {"completions": [{"text": "c", "rating": -1}], "human_completion": {"text": "d"}},
                        {"completions": [{"text": "e", "rating": 0}], "chosen_completion": None},
                    ]
                },
            },
            (Reply("a\nd\ne", None, (Step("a", 1.0), Step("d"), Step("e", 0.0))),),
        ),
    ],
)
def test_shapes(tmp_path, row, replies):
    assert one(tmp_path, row, Scored).records == [Scored(Q, replies)]


def test_arena_takes_the_winner_and_drops_ties(tmp_path):
    sides = {
        f"conversation_{side}": [{"role": "user", "content": "q"}, {"role": "assistant", "content": side}]
        for side in "ab"
    }
    rows = [sides | {"winner": winner} for winner in ("model_a", "model_b", "tie", "tie (bothbad)")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = read(tmp_path / "x.jsonl", Comparison)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in result.records] == [(Q, "a", "b"), (Q, "b", "a")]
    assert (result.report.format, result.report.dropped) == ("arena", {"tie": 2})


def test_ultrafeedback_prefers_the_overall_score_and_pairs_by_it(tmp_path):
    completions = [
        {"response": "a", "overall_score": 6.0, "fine-grained_score": 1},
        {"response": "b", "overall_score": None, "fine-grained_score": 4.5},
        {"response": " ", "overall_score": 9},
    ]
    row = {"instruction": "q", "completions": completions}
    (pair,) = one(tmp_path, row, Comparison).records
    assert (pair.prompt, pair.chosen, pair.rejected, pair.grade) == (Q, "a", "b", 1.5)
    assert one(tmp_path, row, Scored).report.left_out == {"replies without text": 1}


def test_self_instruct_gives_one_record_an_instance(tmp_path):
    instances = [{"input": "x", "output": "o"}, {"input": "", "output": "p"}, {"input": "y", "output": " "}]
    result = one(tmp_path, {"instruction": "i", "instances": instances}, Demonstration)
    texts = [tuple(turn.content for turn in record.messages) for record in result.records]
    assert texts == [("i\nx", "o"), ("i", "p")]
    assert (result.report.rows, result.report.records, result.report.left_out) == (1, 2, {"replies without text": 1})


def test_edited_triples_pair_by_rank(tmp_path):
    result = one(tmp_path, {"prompt": "q", "edited": "e", "chosen": "c", "rejected": "r"}, Comparison)
    pairs = [(pair.chosen, pair.rejected, pair.grade) for pair in result.records]
    assert pairs == [("e", "c", 1.0), ("e", "r", 2.0), ("c", "r", 1.0)]
