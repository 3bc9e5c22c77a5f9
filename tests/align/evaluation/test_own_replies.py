"""The reward model's accuracy on a policy's own replies, by hand, and when a round is due."""

import math

import pytest

from align.evaluation.own_replies import accuracy_on_own, change, due
from align.evaluation.shares import wilson


def test_pairs_without_a_better_reply_are_counted_apart():
    winners = ["first", "second", "second", "first", "tie", None, "first"]
    margins = [1.0, 0.5, -2.0, 0.0, 3.0, 1.0, math.nan]
    found = accuracy_on_own(range(7), winners, margins)
    assert found["accuracy"] == (1 + 0 + 1 + 0.5) / 4 and (found["pairs"], found["undecided"]) == (4, 3)
    assert accuracy_on_own([0], ["tie"], [1.0]) is None


def test_pairs_of_one_prompt_hang_together():
    winners, margins = ["first"] * 40, [1.0] * 30 + [-1.0] * 10
    apart = accuracy_on_own(range(40), winners, margins)
    together = accuracy_on_own([at // 10 for at in range(40)], winners, margins)
    assert (apart["low"], apart["high"]) == pytest.approx(wilson(30, 40))
    assert together["accuracy"] == apart["accuracy"] and together["low"] < apart["low"]


def part(right, of):
    low, high = wilson(right, of)
    return {"accuracy": right / of, "low": low, "high": high}


def test_a_round_is_due_where_the_accuracy_surely_fell():
    # Newcombe 1998, table II, method 10, example (a): 56/70 and 48/80 differ by 0.2, from 0.0524 to 0.3339
    found = change(part(48, 80), part(56, 70))
    assert [found[key] for key in ("difference", "low", "high")] == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)
    told = due(part(56, 70), part(48, 80))
    assert "in 60.0 % of the pairs, after 80.0 % with the policy that it started from" in told
    assert due(part(56, 70), part(52, 70)) == due(part(48, 80), part(56, 70)) == due(None, part(1, 2)) == ""
