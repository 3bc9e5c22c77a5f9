"""People's rankings as judge, and a published table from reconstructed judgments."""

import csv
import json
from collections import Counter

import pytest

from data_formats.records import Message
from reward.judges.protocol import Judge, Judgment, ReplyPair
from reward.judges.rankings import RankingsJudge
from reward.protocol import Sample

# Qwen report, Fig. 4: win/tie/loss in % against gpt-3.5-turbo-0613, by three annotators of so many prompts.
PROMPTS = {"knowledge": 60, "language": 50, "writing": 100, "maths": 40, "coding": 40}
PUBLISHED = {
    "7B SFT": {"average": (28.4, 28.3, 43.3), "knowledge": (31.1, 31.1, 37.8), "language": (24.0, 46.0, 30.0),
               "writing": (35.3, 19.7, 45.0), "maths": (23.3, 29.2, 47.5), "coding": (17.5, 22.5, 60.0)},
    "14B SFT": {"average": (30.7, 32.3, 37.0), "knowledge": (32.8, 33.3, 33.9), "language": (29.3, 54.7, 16.0),
                "writing": (34.7, 22.7, 42.7), "maths": (34.2, 34.2, 31.7), "coding": (15.8, 25.0, 59.2)},
    "14B RLHF": {"average": (38.7, 28.9, 32.4), "knowledge": (42.2, 32.8, 25.0), "language": (39.3, 33.3, 27.3),
                 "writing": (39.7, 21.0, 39.3), "maths": (39.2, 39.2, 21.7), "coding": (30.0, 26.7, 43.3)},
    "GPT-4": {"average": (43.8, 32.2, 24.0), "knowledge": (37.2, 40.0, 22.8), "language": (36.0, 47.3, 16.7),
              "writing": (49.7, 19.0, 31.3), "maths": (45.8, 33.3, 20.8), "coding": (46.7, 33.3, 20.0)},
}  # fmt: skip
BASELINE = "GPT-3.5"


def reconstructed():
    """A row an annotator and prompt, whose ranks give each category's counts; the baseline has rank 3."""
    for category, prompts in PROMPTS.items():
        ranks = {}
        for model, published in PUBLISHED.items():
            counts = [round(share * prompts * 3 / 100) for share in published[category]]
            assert sum(counts) == prompts * 3
            ranks[model] = [rank for rank, count in zip((2, 3, 4), counts, strict=True) for _ in range(count)]
        for at in range(prompts * 3):
            yield {
                "prompt": f"{category} {at % prompts}", "category": category, "annotator": f"annotator {at // prompts}",
                f"rank_{BASELINE}": 3, **{f"rank_{model}": ranks[model][at] for model in PUBLISHED},
            }  # fmt: skip


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    path, rows = tmp_path_factory.mktemp("votes") / "fig4.csv", list(reconstructed())
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return RankingsJudge(path)


def test_the_published_table_is_what_judgments_pooled_give(judge):
    assert isinstance(judge, Judge) and (judge.name, judge.described) == ("fig4", "3 annotators of fig4.csv")
    assert judge.models == (BASELINE, *PUBLISHED) and judge.left_out == {}
    for model, published in PUBLISHED.items():
        pairs = judge.pairs(model, BASELINE)
        assert len(pairs) == 290
        counts = {category: Counter() for category in published}
        for pair, judgments in zip(pairs, judge.compare(pairs), strict=True):
            assert [one.by for one in judgments] == ["annotator 0", "annotator 1", "annotator 2"]
            for one in judgments:
                counts["average"][one.winner] += 1
                counts[pair.first.columns["category"]][one.winner] += 1
        assert counts["average"].total() == 870
        for category, shares in published.items():
            count = counts[category]
            found = tuple(round(100 * count[winner] / count.total(), 1) for winner in ("first", "tie", "second"))
            assert found == shares, (model, category)


def pair(prompt, first, second, models=("", ""), system=None):
    turns = (*([Message("system", system)] if system else []), Message("user", prompt))
    return ReplyPair(Sample(turns, first), Sample(turns, second), models)


@pytest.fixture
def texts(tmp_path):
    rows = [
        {"prompt": "q", "annotator": "ann", "models": ["m", "n", "o"], "replies": ["x", "y", "y"], "ranks": [1, 2, 3]},
        {"prompt": "q", "annotator": "bob", "models": ["m", "n"], "replies": ["x", "y"], "ranks": [1, 1]},
        {"prompt": "q", "annotator": "eve", "models": ["m", "n"], "replies": ["other", "y"], "ranks": [1, 2]},
        {"prompt": "q", "annotator": "sys", "models": ["m", "n"], "ranks": [2, 1], "system": "Be brief."},
    ]  # fmt: skip
    path = tmp_path / "votes of people.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RankingsJudge(path)


def test_a_pair_is_looked_up_by_texts_and_by_models_where_there_are_none(texts):
    assert texts.name == "votes_of_people" and texts.described == "4 annotators of votes of people.jsonl"
    assert texts.compare(
        [
            pair("q", "x", "y\n", ("m", "n")),
            pair("q", "y", "x", ("n", "m"), system="Be brief."),
            pair("q", "x", "y"),  # two models wrote it, and ann ranked them differently
            pair("q", "x", "unheard", ("m", "n")),
            pair("unasked", "x", "y", ("m", "n")),
        ]
    ) == [
        [Judgment("first", by="ann"), Judgment("tie", by="bob")],
        [Judgment("second", by="ann"), Judgment("tie", by="bob"), Judgment("first", by="sys")],
        [Judgment("tie", by="bob")],
        [],
        [],
    ]


def test_the_files_own_pairs_are_those_that_somebody_ranked(texts):
    found = texts.pairs("m", "o")
    assert [(one.first.completion, one.second.completion) for one in found] == [("x", "y")]
    assert texts.compare(found) == [[Judgment("first", by="ann"), Judgment("tie", by="bob")]]  # who ranked these texts
    assert [one.first.completion for one in texts.pairs("m", "n")] == ["x", "other", ""]
