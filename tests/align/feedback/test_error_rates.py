"""How often annotators are wrong: exact on expected counts, within three points on simulated annotators."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from align.feedback.error_rates import FEWEST, error_rates


def expected_choices(rates, number):
    """As many pairs of each kind as the model expects: the first reply earlier or later, and chosen or not, by all."""
    choices = {f"a{at}": {} for at in range(len(rates))}
    for earlier in (False, True):
        for chosen in product((False, True), repeat=len(rates)):
            likely = Fraction(0)
            for first_is_better in (False, True):
                part = Fraction(1, 4)
                for said, rate in zip(chosen, rates, strict=True):
                    part *= 1 - rate if said == first_is_better else rate
                likely += part
            times = likely * number
            assert times.denominator == 1
            for at in range(int(times)):
                for who, said in zip(choices, chosen, strict=True):
                    choices[who][f"{earlier}{chosen}{at}", 0] = (earlier, said)
    return choices


@pytest.mark.parametrize("rate", [Fraction(1, 10), Fraction(1, 5), Fraction(3, 10)])
def test_two_equal_annotators_agree_on_a_share_of_the_squares(rate):
    choices = expected_choices((rate, rate), 4000)
    first, second = choices.values()
    agree = Fraction(sum(first[pair][1] == second[pair][1] for pair in first), len(first))
    assert agree == (1 - rate) ** 2 + rate**2
    by_hand = (1 - (2 * float(agree) - 1) ** 0.5) / 2
    for one in error_rates(choices, resamples=10).values():
        assert one.rate == pytest.approx(by_hand, abs=5e-4) and one.rate == pytest.approx(float(rate), abs=5e-4)
        assert one.low < one.rate < one.high and abs(one.lean) < 1e-6 and one.pairs == 4000


def test_three_annotators_each_with_a_rate_of_their_own():
    rates = Fraction(1, 10), Fraction(1, 5), Fraction(2, 5)
    choices = expected_choices(rates, 4000)
    said = np.array([[chosen for _, chosen in own.values()] for own in choices.values()]) * 2 - 1
    products = said @ said.T / said.shape[1]  # (1 - 2 a) (1 - 2 b) of each two, so three of them tell each
    for at, one in enumerate(error_rates(choices, resamples=10).values()):
        b, c = [other for other in range(3) if other != at]
        by_moments = (1 - (products[at, b] * products[at, c] / products[b, c]) ** 0.5) / 2
        assert one.rate == pytest.approx(by_moments, abs=1e-3) and one.rate == pytest.approx(rates[at], abs=1e-3)


def simulated(seed, errors, leans, number, *, same_order):
    """Choices of annotators who take what is shown first in `leans` of the cases, else err in `errors` of them; and how
    often each was wrong in truth."""
    rng = np.random.default_rng(seed)
    choices, wrong = {}, {}
    first_is_better, order = rng.random(number) < 0.5, rng.random(number) < 0.5
    for at, (error, lean) in enumerate(zip(errors, leans, strict=True)):
        earlier = order if same_order else rng.random(number) < 0.5
        sees = first_is_better ^ (rng.random(number) < error)
        chosen = np.where(rng.random(number) < lean, earlier, sees)
        judged = rng.random(number) < 0.8
        pairs = {(f"i{p // 2}", p): (bool(earlier[p]), bool(chosen[p])) for p in np.flatnonzero(judged)}
        choices[f"a{at}"], wrong[f"a{at}"] = pairs, (1 - lean) * error + lean / 2
    return choices, wrong


@pytest.mark.parametrize("same_order", [False, True])
@pytest.mark.parametrize("errors, leans", [((0.2, 0.2), (0.1, 0.1)), ((0.1, 0.25, 0.3), (0.3, 0.0, 0.1))])
def test_known_errors_and_leans_are_recovered_within_three_points(errors, leans, same_order):
    choices, wrong = simulated(1, errors, leans, 4000, same_order=same_order)
    found = error_rates(choices, resamples=10)
    for (who, one), lean in zip(found.items(), leans, strict=True):
        assert abs(one.rate - wrong[who]) < 0.03, (who, one, wrong[who])
        assert abs(one.lean - lean / 2) < 0.03 and 0 < one.high - one.low < 0.1


def test_a_lean_that_all_share_misleads_agreement_alone():
    choices, wrong = simulated(2, (0.2, 0.2), (0.4, 0.4), 6000, same_order=True)
    first, second = choices.values()
    agree = np.mean([first[pair][1] == second[pair][1] for pair in first.keys() & second.keys()])
    assert abs((1 - (2 * agree - 1) ** 0.5) / 2 - wrong["a0"]) > 0.03  # agreement without the order: too few errors
    assert all(abs(one.rate - wrong[who]) < 0.03 for who, one in error_rates(choices, resamples=2).items())


def test_of_two_who_mostly_disagree_nothing_is_said_and_a_third_tells():
    opposite, _ = simulated(3, (0.1, 0.9), (0.0, 0.0), 400, same_order=False)
    assert error_rates(opposite, resamples=2) == {}
    others = {f"other {who}": {("other", *pair): said for pair, said in own.items()} for who, own in opposite.items()}
    agreeing, wrong = simulated(4, (0.1, 0.9, 0.2), (0.0, 0.0, 0.0), 400, same_order=False)
    found = error_rates(others | agreeing, resamples=2)
    assert set(found) == set(agreeing) and all(abs(one.rate - wrong[who]) < 0.06 for who, one in found.items())


def test_nothing_is_said_of_few_pairs():
    pairs = {(f"i{at}", 0): (at % 2 > 0, at % 3 > 0) for at in range(FEWEST)}
    few = dict(list(pairs.items())[1:])
    assert error_rates({"ann": pairs, "ben": few}) == {} == error_rates({"ann": pairs}) == error_rates({})
    found = error_rates({"ann": pairs, "ben": pairs, "cat": few})
    assert set(found) == {"ann", "ben"}
    assert found["ann"].rate < 0.05 and found["ann"].high > 0.1  # of twenty pairs without a difference
