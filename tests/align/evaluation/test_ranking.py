"""Ranking and agreement: evalica's figures beside our own arithmetic, and what a bootstrap over prompts must do."""

import math
import random

import evalica
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from align.evaluation.ranking import POINTS, agreement, ranking
from align.evaluation.wins import ComparedPair


def played(counts, *, copies=1):
    """Matches with these numbers of wins of the first, ties and wins of the second; each judgment has its prompt."""
    matches, prompt = {}, 0
    for names, numbers in counts.items():
        matches[names] = []
        for winner, number in zip(("first", "tie", "second"), numbers, strict=True):
            for _ in range(number):
                matches[names].append(ComparedPair(prompt, [winner] * copies))
                prompt += 1
    return matches


def davidson(counts, models):
    """Davidson's likelihood at its maximum, by a general optimizer: log-strengths with mean 0."""

    def loss(values):
        strength, tie, total = dict(zip(models, values[:-1], strict=True)), values[-1], 0.0
        for (a, b), (wins, ties, losses) in counts.items():
            logs = np.array([strength[a], tie + (strength[a] + strength[b]) / 2, strength[b]])
            total -= np.dot([wins, ties, losses], logs - np.logaddexp.reduce(logs))
        return total + np.mean(values[:-1]) ** 2

    return minimize(loss, np.zeros(len(models) + 1), method="BFGS", options={"gtol": 1e-9}).x[:-1]


def test_two_models_by_hand():
    """Davidson's strengths of two are as their wins: 30 to 10 are odds of 3, whatever the ties."""
    first, second = ranking(played({("a", "b"): (30, 20, 10)}), resamples=40)
    assert (first["model"], second["model"]) == ("a", "b")
    assert first["bradley_terry"] - second["bradley_terry"] == pytest.approx(400 * math.log10(3), abs=1e-4)
    assert first["bradley_terry"] + second["bradley_terry"] == pytest.approx(2000)
    assert first["judgments"] == 60


def test_three_models_are_those_of_the_likelihood():
    counts = {("a", "b"): (20, 15, 9), ("a", "c"): (25, 4, 6), ("b", "c"): (12, 18, 13)}
    rows = {row["model"]: row for row in ranking(played(counts), resamples=80)}
    expected = davidson(counts, "abc")
    found = np.array([rows[name]["bradley_terry"] for name in "abc"])
    assert found == pytest.approx(1000 + POINTS * (expected - expected.mean()), abs=1e-2)
    for row in rows.values():
        assert row["bradley_terry_low"] < row["bradley_terry"] < row["bradley_terry_high"]
        assert row["elo_low"] < row["elo"] < row["elo_high"]
    assert rows["a"]["elo"] > rows["b"]["elo"] > rows["c"]["elo"]


def test_elo_is_that_of_the_textbook():
    rng = random.Random(0)
    rows = [(*rng.sample("abc", 2), rng.choice(("first", "tie", "second"))) for _ in range(60)]
    rating = dict.fromkeys("abc", 1000.0)
    for a, b, winner in rows:
        expected = 1 / (1 + 10 ** ((rating[b] - rating[a]) / 400))
        change = 4 * ({"first": 1, "tie": 0.5, "second": 0}[winner] - expected)
        rating[a] += change
        rating[b] -= change
    names = {"first": evalica.Winner.X, "tie": evalica.Winner.Draw, "second": evalica.Winner.Y}
    firsts, seconds, winners = zip(*((a, b, names[winner]) for a, b, winner in rows), strict=True)
    found = evalica.elo(firsts, seconds, winners)
    assert {name: found.scores[name] for name in "abc"} == pytest.approx(rating)


def test_several_judgments_on_a_prompt_do_not_narrow_the_interval():
    counts = {("a", "b"): (30, 10, 20), ("b", "c"): (25, 10, 25), ("a", "c"): (30, 5, 25)}
    once, thrice = (ranking(played(counts, copies=copies), resamples=40) for copies in (1, 3))
    assert [row["model"] for row in once] == [row["model"] for row in thrice]
    for one, three in zip(once, thrice, strict=True):
        assert three["bradley_terry"] == pytest.approx(one["bradley_terry"], abs=1e-3)
        assert three["bradley_terry_low"] == pytest.approx(one["bradley_terry_low"], abs=1e-3)  # the same draws
    assert ranking(played(counts), resamples=40) == once


def test_strengths_that_do_not_exist_are_not_made_up():
    rows = {row["model"]: row for row in ranking(played({("a", "b"): (9, 0, 0), ("b", "c"): (3, 2, 4)}), resamples=40)}
    assert [rows[name]["bradley_terry"] for name in "abc"] == [None] * 3
    assert rows["a"]["elo"] > rows["b"]["elo"]
    tied = ranking(played({("a", "b"): (0, 5, 0)}), resamples=40)
    assert [row["bradley_terry"] for row in tied] == [1000.0, 1000.0]
    assert ranking({("a", "b"): [ComparedPair(0, [None])]}) == []


def units(by_prompt):
    return {(prompt, "the replies"): winner for prompt, winner in by_prompt.items()}


def test_alpha_by_hand():
    """Two judges, four units: equal on three, loss against win on the fourth. Values 0, .5, 1 occur 3, 2 and 3 times:
    ordinal distances are (3/2 + 2/2)^2 = 6.25 for neighbours and (3/2 + 2 + 3/2)^2 = 25 for the ends. Observed
    2 x 25 / 8; expected (2 x 3 x 2 x 6.25 x 2 + 2 x 9 x 25) / 56 over pairs of 8 values; alpha 1 - 6.25 / (600 / 56).
    """
    one = units({1: "first", 2: "tie", 3: "second", 4: "first"})
    found = agreement({("people", ""): one, ("reward", ""): one | units({4: "second", 9: "tie"})})
    assert found["alpha"] == pytest.approx(1 - (2 * 25 / 8) / (600 / 56))
    assert found["low"] <= found["alpha"] <= found["high"]
    assert found["units"] == 4
    assert found["between"] == [{"first": "people", "second": "reward", "equal": 0.75, "number": 4}]
    assert found["within"] == {}


def test_annotators_of_a_judge_agree_among_themselves_and_with_others():
    votes = {
        ("people", "ann"): units({1: "first", 2: "second", 3: "tie"}),
        ("people", "bob"): units({1: "first", 2: "second"}),
        ("model", ""): units({1: "first", 2: "first"}),
    }
    found = agreement(votes)
    assert found["within"]["people"]["alpha"] == pytest.approx(1.0)
    assert found["within"]["people"]["units"] == 2
    assert found["between"] == [{"first": "people", "second": "model", "equal": 0.5, "number": 4}]
    alike = agreement({("a", ""): units({1: "tie", 2: "tie"}), ("b", ""): units({1: "tie", 2: "tie"})})
    assert (alike["alpha"], alike["units"]) == (None, 2)
    assert agreement({("a", ""): units({1: "tie"}), ("b", ""): units({2: "tie"})})["alpha"] is None


def test_the_interval_of_alpha_is_over_prompts():
    """Many pairs of replies a prompt do not narrow it: whole prompts are drawn, as a plain bootstrap does it."""
    rng, own = np.random.default_rng(0), {}
    for prompt in range(40):
        same = rng.random() < 0.6  # the judges agree on all ten pairs of a prompt, or differ on all
        for pair in range(10):
            said = rng.integers(3)
            own[prompt, pair] = (said, said if same else (said + 1 + rng.integers(2)) % 3)
    order = ("first", "tie", "second")
    judges = {(str(at), ""): {unit: order[said[at]] for unit, said in own.items()} for at in (0, 1)}
    found = agreement(judges)
    values = np.array([[own[prompt, pair] for pair in range(10)] for prompt in range(40)])

    def alpha(prompts):
        return evalica.alpha(pd.DataFrame(values[prompts].reshape(-1, 2).T), "ordinal").alpha

    assert found["alpha"] == pytest.approx(alpha(np.arange(40)), abs=1e-12)
    drawn = np.percentile([alpha(rng.integers(40, size=40)) for _ in range(400)], (2.5, 97.5))
    assert (found["low"], found["high"]) == pytest.approx(drawn, abs=0.05)
    assert found["high"] - found["low"] > 0.25  # 0.12 if pairs were independent
    alone = agreement({name: {unit: said for unit, said in one.items() if unit[0] < 1} for name, one in judges.items()})
    assert alone["low"] is None
