import pytest

from align.evaluation.shares import wilson
from align.report.accuracy import accuracy_bars
from align.runs.run_files import StageFiles


def row(chosen_score, rejected_score, chosen, rejected, *tags):
    sides = {"chosen": chosen, "rejected": rejected, "tags": list(tags)}
    return {"chosen_score": chosen_score, "rejected_score": rejected_score, **sides}


ROWS = [
    row(2, 1, "aaaa", "a", "correctness"),
    row(2, 1, "aaa", "a"),
    row(1, 2, "a", "aa", "correctness"),
    row(1, 1, "a", "a"),  # equal scores are wrong, equal lengths a toss
    {"chosen_score": 1.0},  # not scored on both sides
]


def shares(summary):
    return {(bar.part, bar.kind): bar.share for bar in accuracy_bars(StageFiles("rm", summary, evals=ROWS))}


def test_parts_beside_length_alone():
    assert shares({}) == {
        ("all pairs (4)", "model"): 0.5,
        ("all pairs (4)", "length"): 0.625,
        ("tagged correctness (2)", "model"): 0.5,
        ("tagged correctness (2)", "length"): 0.5,
    }


def test_the_rule_about_length_is_the_one_the_summary_used():
    assert shares({"length_rule": {"longer_wins": False}})["all pairs (4)", "length"] == 0.375


def test_without_lines_the_summary_speaks():
    summary = {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9, "pairs": 100, "length_baseline": 0.6}
    summary |= {"by_tag": {"correctness": {"accuracy": 0.75}}, "accuracy_without_pmp": 0.7, "manners_baseline": "?"}
    bars = accuracy_bars(StageFiles("rm", summary))
    assert [(bar.part, bar.kind, bar.share) for bar in bars] == [
        ("all pairs (100)", "model", 0.8),
        ("all pairs (100)", "length", 0.6),
        ("tagged correctness", "model", 0.75),
        ("finetuned without PMP", "other", 0.7),
    ]
    assert (bars[0].low, bars[0].high, bars[2].low) == (0.7, 0.9, None)
    assert bars[3].low == pytest.approx(wilson(70, 100)[0])
