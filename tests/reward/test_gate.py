"""Llama 2's gate against the paper's formula, written once more in probabilities."""

import math

import pytest

from data_formats.records import Message
from reward.gate import EDGE, SafetyGate, logit
from reward.protocol import Reward, RewardError, Sample, judge
from reward.sources import FunctionReward

HELPFUL = [3.0, 2.0, -1.0, 0.5, 4.0]
SAFE = [1.0, -1.8, -1.7, 2.5, -9.0]  # sigmoid: 0.73, 0.142, 0.154, 0.92, 0.0001
TAGS = ["", "", "", "unsafe", "unsafe"]


def fixed(name, scores):
    return FunctionReward(lambda prompts, completions: scores, name)


def samples(tags=TAGS, column="category"):
    return [Sample((Message("user", "q"),), "a", columns={column: tag}) for tag in tags]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def paper(helpful, safe, tagged):
    """logit(R_c), section 3.2.3, on probabilities."""
    chosen = sigmoid(safe) if tagged or sigmoid(safe) < 0.15 else sigmoid(helpful)
    return math.log(chosen / (1 - chosen))


def test_it_is_the_papers_formula():
    gate = SafetyGate(fixed("helpfulness", HELPFUL), fixed("safety", SAFE))
    assert isinstance(gate, Reward)
    expected = [paper(h, s, tag == "unsafe") for h, s, tag in zip(HELPFUL, SAFE, TAGS, strict=True)]
    assert gate.score(samples()) == pytest.approx(expected, abs=1e-9)
    assert gate.score(samples()) == [3.0, -1.8, -1.0, 2.5, -9.0]
    verdict = judge(gate, samples())
    assert verdict.parts == {"helpfulness": HELPFUL, "safety": SAFE, "gated": [0.0, 1.0, 0.0, 1.0, 1.0]}


def test_probabilities_are_compared_as_they_are_and_become_logits():
    helpful, safe = [0.9, 0.5, 1.0], [0.1499, 0.1501, 0.2]
    gate = SafetyGate(fixed("helpfulness", helpful), fixed("safety", safe), unit="probability")
    found = gate.score(samples(["", "", ""]))
    assert found == pytest.approx([math.log(0.1499 / 0.8501), 0.0, math.log((1 - EDGE) / EDGE)], abs=1e-9)


def test_what_is_no_probability_is_an_error():
    gate = SafetyGate(fixed("helpfulness", [0.5]), fixed("safety", [1.5]), unit="probability", name="mine")
    with pytest.raises(RewardError, match=r"'mine' expects probabilities.*'safety' gave 1\.5"):
        gate.score(samples([""]))


def test_the_tag_may_be_another_columns_value_or_true():
    gate = SafetyGate(fixed("h", [1.0, 1.0, 1.0]), fixed("s", [2.0, 2.0, 2.0]), unsafe=("harm", "drugs"), column="tag")
    assert gate.score(samples(["harm", True, "unsafe"], column="tag")) == [2.0, 2.0, 1.0]
    with pytest.raises(RewardError, match=r"has no column 'tag' to say whether it is unsafe \(it has category\)"):
        gate.score(samples(["harm", "drugs", "harm"], column="category"))  # not silently open
    with pytest.raises(RewardError, match="has no column 'tag'"):
        gate.score(samples([None, "drugs", "harm"], column="tag"))  # a row that lacks what others have


def test_threshold_and_names_are_checked():
    assert logit(0.15) == pytest.approx(-1.7346, abs=1e-4)
    with pytest.raises(ValueError, match="threshold is a probability"):
        SafetyGate(fixed("h", []), fixed("s", []), threshold=-1.73)
    with pytest.raises(ValueError, match="two parts named 'm'"):
        SafetyGate(fixed("m", []), fixed("m", []))
