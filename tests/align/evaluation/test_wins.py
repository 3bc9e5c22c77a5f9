"""Win rates: figure 4 of the Qwen report from its counts, cases by hand, and an independent recomputation."""

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from align.evaluation.shares import wilson
from align.evaluation.wins import ComparedPair, win_rates

# Qwen technical report, figure 4: win / tie / loss in percent of 7B SFT, 14B SFT, 14B RLHF and GPT-4 against GPT-3.5.
PROMPTS = {"knowledge": 60, "language": 50, "writing": 100, "maths": 40, "coding": 40}
PRINTED = {
    "7B SFT": {
        "": (28.4, 28.3, 43.3),
        **{"knowledge": (31.1, 31.1, 37.8), "language": (24.0, 46.0, 30.0), "writing": (35.3, 19.7, 45.0)},
        **{"maths": (23.3, 29.2, 47.5), "coding": (17.5, 22.5, 60.0)},
    },
    "14B SFT": {
        "": (30.7, 32.3, 37.0),
        **{"knowledge": (32.8, 33.3, 33.9), "language": (29.3, 54.7, 16.0), "writing": (34.7, 22.7, 42.7)},
        **{"maths": (34.2, 34.2, 31.7), "coding": (15.8, 25.0, 59.2)},
    },
    "14B RLHF": {
        "": (38.7, 28.9, 32.4),
        **{"knowledge": (42.2, 32.8, 25.0), "language": (39.3, 33.3, 27.3), "writing": (39.7, 21.0, 39.3)},
        **{"maths": (39.2, 39.2, 21.7), "coding": (30.0, 26.7, 43.3)},
    },
    "GPT-4": {
        "": (43.8, 32.2, 24.0),
        **{"knowledge": (37.2, 40.0, 22.8), "language": (36.0, 47.3, 16.7), "writing": (49.7, 19.0, 31.3)},
        **{"maths": (45.8, 33.3, 20.8), "coding": (46.7, 33.3, 20.0)},
    },
}


def rates(pairs):
    return win_rates(pairs, judged_by="three annotators", first="GPT-3.5", second="it")


@pytest.mark.parametrize("model", PRINTED)
def test_figure_4_of_the_qwen_report_is_pooled_judgments(model):
    """Every percentage, the averages too, from whole numbers of judgments, three a prompt."""
    pairs = []
    for category, prompts in PROMPTS.items():
        counts = [round(share * 3 * prompts / 100) for share in PRINTED[model][category]]
        verdicts = [w for w, count in zip(("second", "tie", "first"), counts, strict=True) for _ in range(count)]
        assert len(verdicts) == 3 * prompts
        random.Random(category).shuffle(verdicts)
        pairs += [ComparedPair((category, at), verdicts[3 * at : 3 * at + 3], category) for at in range(prompts)]
    found = rates(pairs)
    assert (found["prompts"], found["judgments"]) == (290, 870)
    for category, printed in PRINTED[model].items():
        part = found["by_category"][category] if category else found
        shares = [round(100 * part[key] / part["judgments"], 1) for key in ("win", "tie", "loss")]
        assert shares == list(printed), category


def test_no_majority_is_taken_and_what_has_no_verdict_does_not_count():
    pairs = [
        ComparedPair("a", ["second", "second", "first"]),
        ComparedPair("b", ["tie", None, "second"]),
        ComparedPair("c", [None]),
        ComparedPair("d", []),
    ]
    found = rates(pairs)
    assert {key: found[key] for key in ("win", "tie", "loss", "judgments", "no_verdict", "unjudged")} == {
        **{"win": 3, "tie": 1, "loss": 1},
        **{"judgments": 5, "no_verdict": 2, "unjudged": 1},
    }
    assert (found["prompts"], found["pairs"]) == (2, 2)
    assert found["win_share"] == pytest.approx(3.5 / 5)
    assert (found["judged_by"], found["first"], found["second"]) == ("three annotators", "GPT-3.5", "it")
    assert found["by_category"] == {}


def test_without_a_verdict_there_is_no_share():
    found = rates([ComparedPair("a", [None], "x"), ComparedPair("b", [])])
    assert [found[key] for key in ("win_share", "low", "high", "length_controlled")] == [None] * 4
    assert found["by_category"]["x"]["no_verdict"] == 1


def test_the_interval_by_hand():
    """Prompt sums 2, 2, 0 of 2 judgments each: share 2/3, between (2/3)^2 + (2/3)^2 + (4/3)^2 = 8/3, so the variance
    of the share is 3/2 (8/3) / 36 = 1/9, and the judgments are worth (2/9) / (1/9) = 2."""
    found = rates([ComparedPair(at, [winner] * 2) for at, winner in enumerate(("second", "second", "first"))])
    assert (found["low"], found["high"]) == pytest.approx(wilson(2 * 2 / 3, 2))


def pairs_of(rng, *, prompts, long_wins, tilt):
    pairs = []
    for prompt in range(prompts):
        for _ in range(rng.choice((1, 2))):
            longer = rng.randint(-60, 100)
            share = 1 / (1 + math.exp(-(tilt + long_wins * math.tanh(longer / 45))))
            winners = ["tie" if rng.random() < 0.2 else "second" if rng.random() < share else "first"]
            pairs.append(ComparedPair(prompt, winners * rng.choice((1, 2)), longer=longer))
    return pairs


def test_an_independent_recomputation_agrees():
    pairs = pairs_of(random.Random(3), prompts=80, long_wins=1.0, tilt=0.4)
    rows = [(p.prompt, {"second": 1, "tie": 0.5, "first": 0}[w], p.longer) for p in pairs for w in p.winners]
    prompt, worth, longer = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    found, n, groups = rates(pairs), len(rows), np.unique(prompt)
    share = worth.mean()
    sums = np.array([(worth[prompt == g] - share).sum() for g in groups])
    variance = len(groups) / (len(groups) - 1) * (sums**2).sum() / n**2
    assert variance > worth.var() / n  # they hang together, so the design effect is not 1
    low, high = found["low"], found["high"]  # of Wilson's equation |share - p| = z sqrt(p (1 - p) / m)
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(
            1.959963984540054 * math.sqrt(bound * (1 - bound) * variance / (share * (1 - share))), rel=1e-9
        )

    x = np.tanh(longer / longer.std(ddof=1))

    worth_each = min(share * (1 - share) / variance / n, 1)  # what a judgment is worth in independent ones

    def loss(weights):
        logits = weights[0] + weights[1] * x
        p = 1 / (1 + np.exp(-logits))
        inputs = np.stack([np.ones(n), x])
        information = np.linalg.det((inputs * p * (1 - p)) @ inputs.T)
        return worth_each * (np.logaddexp(0, logits) - worth * logits).sum() - math.log(information) / 2

    finely = {"method": "Nelder-Mead", "options": {"xatol": 1e-10, "fatol": 1e-14}}
    fitted, controlled = minimize(loss, np.zeros(2), **finely), found["length_controlled"]
    assert controlled["win_share"] == pytest.approx(1 / (1 + math.exp(-fitted.x[0])), abs=1e-5)
    assert controlled["length_weight"] == pytest.approx(fitted.x[1], abs=1e-4)
    for end in (controlled["low"], controlled["high"]):  # twice the difference of log-likelihoods is chi squared
        even = math.log(end / (1 - end))
        best = minimize(lambda slope, even=even: loss([even, slope[0]]), [fitted.x[1]], **finely).fun
        assert 2 * (best - fitted.fun) == pytest.approx(1.959963984540054**2, abs=1e-4)
    assert controlled["low"] < controlled["win_share"] < controlled["high"]


@pytest.mark.parametrize(("long_wins", "tilt"), [(2.0, 0.0), (0.0, 0.8)])
def test_length_control_takes_away_what_length_alone_won(long_wins, tilt):
    rng, pairs = random.Random(5), []
    for at in range(2000):
        longer = rng.randint(-30, 120)  # its replies are the longer ones
        share = 1 / (1 + math.exp(-tilt - long_wins * math.tanh(longer / 43)))
        pairs.append(ComparedPair(at, ["second" if rng.random() < share else "first"], longer=longer))
    found = rates(pairs)
    assert found["win_share"] > 0.65
    assert found["length_controlled"]["win_share"] == pytest.approx(1 / (1 + math.exp(-tilt)), abs=0.04)
    assert found["length_controlled"]["length_weight"] == pytest.approx(long_wins, abs=0.3)


def test_length_control_where_length_tells_every_verdict_and_where_it_cannot_be_told():
    tells = [ComparedPair(at, ["second" if at % 3 else "first"], longer=at % 3 or -1) for at in range(30)]
    found = rates(tells)["length_controlled"]
    assert 0.02 < found["low"] < found["win_share"] < found["high"] < 0.98
    assert found["length_weight"] > 1.5 and found["high"] - found["low"] > 0.3  # and nobody knows the rest
    assert rates([ComparedPair(at, ["second"], longer=at) for at in range(9)])["length_controlled"] is None
    assert rates([ComparedPair(at, ["second", "first"], longer=4) for at in range(9)])["length_controlled"] is None
    assert rates([ComparedPair(at, ["second", "first"]) for at in range(9)])["length_controlled"] is None


def test_length_control_does_not_pretend_to_know_where_no_two_replies_were_nearly_as_long():
    """57 wins of somewhat longer replies, 3 losses of the longest: a regression without a prior puts all of them right,
    and its standard errors are nothing. Then what the same replies say of ties alone: eight."""
    lengths = [(5 + at % 20, "second") for at in range(57)] + [(40 + at, "first") for at in range(3)]
    found = rates([ComparedPair(at, [w], longer=n) for at, (n, w) in enumerate(lengths)])["length_controlled"]
    assert found["high"] - found["low"] > 0.02
    ties = [ComparedPair(at, ["tie"], longer=0) for at in range(8)]
    found = rates(ties + [ComparedPair(8 + at, ["second"], longer=30 + at % 9) for at in range(52)])[
        "length_controlled"
    ]
    assert found["low"] < 0.35 < 0.65 < found["high"]


@pytest.mark.parametrize(("prompts", "far", "even", "slope", "ties"), [(60, 150, 0.4, 1, 0.0), (300, 30, 1, 3, 0.6)])
def test_how_often_the_interval_at_equal_length_holds_the_truth(prompts, far, even, slope, ties):
    """Replies longer by so many characters, give or take 60. Where all are, standard errors hold the truth in 81 of
    100; with many ties, which a logistic curve fits less well, as much trust as the plain share has does in 61."""
    rng, held = np.random.default_rng(0), []
    for _ in range(20):
        longer = rng.normal(far, 60, prompts).round().astype(int)
        won = rng.random(prompts) < 1 / (1 + np.exp(-even - slope * np.tanh(longer / longer.std(ddof=1))))
        said = np.where(rng.random(prompts) < ties, "tie", np.where(won, "second", "first"))
        found = rates([ComparedPair(at, [said[at]], longer=int(longer[at])) for at in range(prompts)])
        found = found["length_controlled"]
        held.append(found["low"] < ties / 2 + (1 - ties) / (1 + math.exp(-even)) < found["high"])
    assert np.mean(held) >= 0.9
