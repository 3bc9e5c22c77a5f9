"""Rewards that fail because of some replies: which ones are found, at what cost, and what is no reply's fault."""

import logging
import math
from typing import get_args

import pytest
import torch

from align.recipe.reward_section import OnRewardError as recipe_words
from data_formats.records import Message
from reward.combined import CombinedReward, Part
from reward.failures import OnRewardError, judge_all
from reward.gate import SafetyGate
from reward.protocol import RewardError, RewardUnavailableError, Sample
from reward.sources import FunctionReward


class Picky:
    """Gives each reply's number and fails on those in `bad`, `times` times; notes how many replies each call has."""

    def __init__(self, bad=(), name="picky", times=math.inf, error=RewardError):
        self.bad, self.name, self.times, self.error, self.calls = set(bad), name, times, error, []

    def score(self, samples):
        self.calls.append(len(samples))
        numbers = [float(sample.completion) for sample in samples]
        found = self.bad & set(numbers)
        if found and self.times > 0:
            self.times -= 1
            raise self.error(f"cannot read {min(found):g}")
        return numbers


def samples(count):
    return [Sample((Message("user", "q"),), str(number)) for number in range(count)]


def without(bad, count):
    return [None if number in bad else float(number) for number in range(count)]


def known(scores):
    return [None if math.isnan(score) else score for score in scores]


@pytest.mark.parametrize("bad", [(), (0,), (7,), (3, 4), (0, 1, 2, 12)])
def test_the_replies_at_fault_are_found_and_the_others_keep_their_scores(bad):
    verdict, failures = judge_all(Picky(bad), samples(16), "mask", most=4)
    assert known(verdict.scores) == without(bad, 16)
    assert failures == [f"cannot read {number}" for number in bad]


def test_one_reply_at_fault_costs_two_calls_a_halving():
    reward = Picky((300,))
    judge_all(reward, samples(512), "mask", most=128)
    assert len(reward.calls) == 1 + 2 * 9 and sum(reward.calls) < 3 * 512


def test_where_too_many_fail_it_is_given_up():
    reward = Picky(range(512))
    with pytest.raises(RewardError, match=r"^cannot read 128; that is reply number 129 that cannot be judged$"):
        judge_all(reward, samples(512), "mask", most=128)
    assert reward.calls.count(1) == 129 and len(reward.calls) < 512


def test_what_no_reply_is_to_blame_for_is_not_looked_for():
    reward = Picky((3,), error=RewardUnavailableError)
    with pytest.raises(RewardUnavailableError):
        judge_all(reward, samples(16), "mask", most=4)
    assert reward.calls == [16]
    reward = Picky((3,), error=torch.OutOfMemoryError)
    with pytest.raises(torch.OutOfMemoryError):
        judge_all(reward, samples(16), "mask", most=4)
    assert reward.calls == [16]


def test_an_exception_of_ones_own_class_is_a_reward_that_failed():
    reward = Picky((3,), error=ZeroDivisionError)
    with pytest.raises(RewardError, match=r"^reward 'picky' failed: ZeroDivisionError: cannot read 3$"):
        judge_all(reward, samples(16))
    assert known(judge_all(reward, samples(16), "mask", most=4)[0].scores) == without({3}, 16)


@pytest.mark.parametrize("scores", [[1.0], [math.nan] * 4, None, [1.0, "x", 2.0, 3.0]])
def test_a_wrong_answer_of_ones_own_class_is_one_too(scores):
    class Odd:
        name = "odd"

        def score(self, samples):
            return scores

    with pytest.raises(RewardError, match=r"^reward 'odd' must give one finite float for each of 4 replies \("):
        judge_all(Odd(), samples(4))


def test_a_call_is_made_three_times(caplog):
    reward = Picky((3,), times=2)
    with caplog.at_level(logging.WARNING):
        assert judge_all(reward, samples(8), "retry")[0].scores == list(map(float, range(8)))
    assert reward.calls == [8, 8, 8] and "cannot read 3 (call 2 of 3" in caplog.messages[1]
    reward = Picky((3,))
    with pytest.raises(RewardError, match="cannot read 3"):
        judge_all(reward, samples(8), "retry")
    assert reward.calls == [8, 8, 8]
    reward = Picky((3,))
    with pytest.raises(RewardError, match="cannot read 3"):
        judge_all(reward, samples(8))
    assert reward.calls == [8]


def test_a_reply_that_any_part_fails_on_has_no_score():
    parts = [Part(Picky((1,), "one"), 2.0), Part(Picky((6,), "two"), -1.0)]
    verdict, failures = judge_all(CombinedReward(parts), samples(8), "mask", most=2)
    assert known(verdict.scores) == without({1, 6}, 8)  # 2 n - n
    assert known(verdict.parts["one"]) == known(verdict.parts["two"]) == without({1, 6}, 8)
    assert failures == ["cannot read 1", "cannot read 6"]


def test_a_gate_and_what_it_holds():
    gate = SafetyGate(
        FunctionReward(lambda prompts, completions: [0.5] * len(completions), "helpful"),
        FunctionReward(lambda prompts, completions: [float(text) / 4 for text in completions], "safe"),
        unit="probability",
    )
    verdict, failures = judge_all(gate, samples(6), "mask", most=1)  # 5 / 4 is no probability
    assert known(verdict.scores)[1:] == [0.0, 0.0, 0.0, 0.0, None] and verdict.scores[0] < -10
    assert known(verdict.parts["gated"]) == [1.0, 0.0, 0.0, 0.0, 0.0, None]
    assert "'safe' gave 1.25" in failures[0]


def test_a_recipe_knows_the_same_words():
    assert get_args(recipe_words) == get_args(OnRewardError)


def test_no_replies_are_no_failure():
    assert judge_all(Picky(), [], "mask")[0].scores == []


def test_another_number_of_scores_is_no_reply_s_fault():
    """Asked about one reply alone a function that gives one score would be right by chance, and all would be equal."""
    calls = []
    reward = FunctionReward(lambda prompts, completions: calls.append(len(completions)) or [0.0], "one")
    with pytest.raises(RewardUnavailableError, match="1 scores for 8 replies"):
        judge_all(reward, samples(8), "mask", most=2)
    assert calls == [8]
