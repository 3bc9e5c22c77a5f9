"""Judges in the place of people: rankings, strengths, and nothing asked twice."""

from __future__ import annotations

import json

import pytest

from align.feedback import judge as judging
from align.feedback.judge import judge_items
from align.feedback.judgments import append, load_judgments, load_rows
from reward.judges.functions import FunctionJudge
from reward.judges.protocol import Judgment
from reward.judges.rankings import RankingsJudge
from reward.judges.rewards import RewardJudge
from reward.protocol import RewardError
from reward.sources import FunctionReward
from tests.align.feedback.made import item, judgment

ITEMS = [item(f"i{at}", "a", "a" * (2 + at)) for at in range(8)]
THREE = item("three", "a", "bbb", "cc")


def by_length(prompts, completions):
    return [float(len(text)) for text in completions]


def longer(prompts, first, second):
    return [len(a) - len(b) for a, b in zip(first, second, strict=True)]


def said(path):
    return {one.item: (one.annotator, one.ranking, one.strength) for one in load_judgments(path)}


def test_scores_rank_and_the_gap_of_the_best_is_the_strength(tmp_path):
    path = tmp_path / "judgments.jsonl"
    judge = RewardJudge(FunctionReward(by_length, "length"))
    by = judge_items(judge, [*ITEMS, THREE, item("one", "x")], path, settings={})
    assert (len(by.new), by.there, dict(by.without)) == (9, 0, {"a single reply": 1})
    found = said(path)
    # Gaps 1 to 8, and 1 of three: two of the nine have the least, whose middle rank is in the first quarter.
    words = ["negligibly", *["slightly"] * 2, *["better"] * 3, *["significantly"] * 2]
    gaps = {f"i{at}": gap for at, gap in enumerate(range(1, 9))} | {"three": 1}
    for name, gap in gaps.items():
        middle = (sum(other < gap for other in gaps.values()) + sum(other == gap for other in gaps.values()) / 2) / 9
        word = ("negligibly", "slightly", "better", "significantly")[int(4 * middle)]
        assert found[name] == ("length", (("r1",), ("r0",)) if name != "three" else (("r1",), ("r2",), ("r0",)), word)
    assert [found[f"i{at}"][2] for at in range(8)] == words
    (three,) = [one for one in load_judgments(path) if one.item == "three"]
    assert three.comment == "scores r0 1, r1 3, r2 2" and three.shown == ("r0", "r1", "r2")


def test_a_judge_without_scores_says_no_strength_and_points_are_ranks(tmp_path):
    path = tmp_path / "judgments.jsonl"
    judge_items(FunctionJudge(longer), [THREE, item("same", "x", "x", "yy")], path, settings={}, name="mine")
    assert said(path) == {
        "three": ("mine", (("r1",), ("r2",), ("r0",)), None),
        "same": ("mine", (("r2",), ("r0", "r1")), None),
    }

    def circle(prompts, first, second):
        return [
            "first" if (a, b) in {("a", "bbb"), ("bbb", "cc")} else "second" for a, b in zip(first, second, strict=True)
        ]

    judge_items(FunctionJudge(circle), [THREE], path, settings={})
    assert load_judgments(path)[-1].ranking == (("r0", "r1", "r2"),)  # a beats b beats c beats a


def test_a_function_gets_the_columns_of_the_prompts(tmp_path):
    """All of them, whichever rows have them."""

    def nearer(prompts, first, second, reference, level, **columns):
        assert level == [None, 3]
        return [(truth in a) - (truth in b) for a, b, truth in zip(first, second, reference, strict=True)]

    items = [item("two", "1", "2", reference="2"), item("one", "1", "2", reference="1", columns={"level": 3})]
    judge_items(FunctionJudge(nearer), items, tmp_path / "judgments.jsonl", settings={})
    assert [one.ranking[0] for one in load_judgments(tmp_path / "judgments.jsonl")] == [("r1",), ("r0",)]


def test_nothing_is_asked_twice_and_what_changed_is_judged_anew(tmp_path, monkeypatch):
    path = tmp_path / "judgments.jsonl"
    monkeypatch.setattr(judging, "AT_ONCE", 3)
    calls = []

    def fails_later(prompts, first, second):
        calls.append(len(first))
        if len(calls) == 2:
            raise RuntimeError("gone")
        return longer(prompts, first, second)

    judge = FunctionJudge(fails_later, name="j")
    append(path, judgment("i0", "ann", [["r0"], ["r1"]], "better"))
    with pytest.raises(RewardError, match="gone"):
        judge_items(judge, ITEMS, path, settings={"v": 1})
    assert len(load_judgments(path)) == 1
    done = []
    by = judge_items(judge, ITEMS, path, settings={"v": 1}, told=done.append)
    assert calls == [3, 3, 3, 2] and (len(by.new), by.there) == (8, 0) and done == [3, 6, 8]
    assert [one.name for one in tmp_path.iterdir()] == ["judgments.jsonl"]
    whole = path.read_bytes()
    by = judge_items(judge, ITEMS, path, settings={"v": 1})
    assert len(calls) == 4 and (len(by.new), by.there) == (0, 8) and path.read_bytes() == whole
    for version in (2, 1):  # another judge of that name judges anew, and so does the first one after it
        assert len(judge_items(judge, ITEMS[:2], path, settings={"v": version}).new) == 2
    assert len({one.id for one in load_rows(path)}) == 1 + 8 + 4
    assert sum(one.annotator == "j" for one in load_judgments(path)) == 8 and len(load_judgments(path)) == 9


def test_without_a_verdict_there_is_no_judgment_and_the_next_run_asks_again(tmp_path):
    path, answers = tmp_path / "judgments.jsonl", [None, "first"]

    class Judge:
        name, described = "j", "j"

        def compare(self, pairs):
            return [[Judgment(answers[0], note="no idea")] for _ in pairs]

    by = judge_items(Judge(), ITEMS[:2], path, settings={})
    assert (by.new, dict(by.without), by.note) == ([], {"no verdict of j": 2}, "no idea")
    del answers[0]
    assert len(judge_items(Judge(), ITEMS[:2], path, settings={}).new) == 2


def test_people_of_a_file_of_rankings_are_annotators(tmp_path):
    rows = [
        {"prompt": "ask three", "annotator": who, "replies": replies, "ranks": ranks}
        for who, replies, ranks in (("ann", ["a", "bbb", "cc"], [1, 2, 2]), ("ben", ["cc", "bbb"], [1, 2]))
    ]
    votes = tmp_path / "votes.jsonl"
    votes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    by = judge_items(RankingsJudge(votes), [THREE, ITEMS[0]], tmp_path / "judgments.jsonl", settings={})
    ann, ben = load_judgments(tmp_path / "judgments.jsonl")
    assert (ann.annotator, ann.shown, ann.ranking) == ("ann", ("r0", "r1", "r2"), (("r0",), ("r1", "r2")))
    assert (ben.annotator, ben.shown, ben.ranking) == ("ben", ("r1", "r2"), (("r2",), ("r1",)))
    assert dict(by.without) == {"nothing said of its replies": 1}
