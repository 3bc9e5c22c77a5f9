import math

import pytest

from data_formats.records import Message
from reward.combined import CombinedReward, Part, leaves
from reward.gate import SafetyGate
from reward.protocol import Reward, RewardError, Sample, judge
from reward.sources import FunctionReward
from tests.tiny_models import byte_tokenizer


def fixed(name, *scores):
    return FunctionReward(lambda prompts, completions: list(scores), name)


def samples(count):
    return [Sample((Message("user", "q"),), str(i), prompt_ids=(1,), completion_ids=(2, 3)) for i in range(count)]


def test_the_weighted_sum_by_hand_and_the_parts_as_they_were():
    first = Part(fixed("first", 1.0, 2.0, 10.0), weight=0.5)
    second = Part(fixed("second", -4.0, 0.0, 9.0), weight=-2.0, shift=1.0, scale=2.0, clip=1.5)
    whole = CombinedReward([first, second])
    assert isinstance(whole, Reward)
    # second: (-4-1)/2 = -2.5 -> -1.5, (0-1)/2 = -0.5, (9-1)/2 = 4 -> 1.5; times -2
    expected = [0.5 + 3.0, 1.0 + 1.0, 5.0 - 3.0]
    assert whole.score(samples(3)) == expected
    verdict = judge(whole, samples(3))
    assert verdict.scores == expected
    assert verdict.parts == {"first": [1.0, 2.0, 10.0], "second": [-4.0, 0.0, 9.0]}
    assert judge(first.reward, samples(3)).parts == {}
    assert whole.score([]) == []


def test_parts_of_parts_are_named_after_both():
    gate = SafetyGate(fixed("helpfulness", 1.0), fixed("safety", 2.0))
    whole = CombinedReward([Part(gate, 2.0), Part(fixed("length", 0.25), 4.0)])
    verdict = judge(whole, samples(1))
    assert verdict.scores == [3.0]
    assert verdict.parts == {
        "gate": [1.0],
        "gate/helpfulness": [1.0],
        "gate/safety": [2.0],
        "gate/gated": [0.0],
        "length": [0.25],
    }
    assert [leaf.name for leaf in leaves(whole)] == ["helpfulness", "safety", "length"]


def test_a_part_that_gives_nan_or_too_few_is_named():
    for scores, words in (((math.nan,), "nan"), ((), "0 scores for 1")):
        with pytest.raises(RewardError, match=f"'bad' gave {words}"):
            CombinedReward([Part(fixed("good", 1.0)), Part(fixed("bad", *scores))]).score(samples(1))


def test_a_third_party_part_is_checked_too():
    class Sloppy:
        name = "sloppy"

        def score(self, samples):
            return [1.0]

    with pytest.raises(RewardError, match="'sloppy' gave 1 scores for 2"):
        CombinedReward([Part(Sloppy())]).score(samples(2))


@pytest.mark.parametrize("bad", [{"weight": math.nan}, {"scale": 0.0}, {"scale": -1.0}, {"clip": 0.0}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="'a'"):
        Part(fixed("a"), **bad)


def test_two_parts_of_one_name_or_none_are_refused():
    with pytest.raises(ValueError, match="two parts named 'a'"):
        CombinedReward([Part(fixed("a")), Part(fixed("a"))])
    with pytest.raises(ValueError, match="no part"):
        CombinedReward([])


class Reader:
    """Notes whether it was given token ids."""

    def __init__(self, name, tokenizer=None, reads_ids=True):
        self.name, self.tokenizer, self.reads_ids = name, tokenizer, reads_ids

    def score(self, samples):
        self.given = [sample.completion_ids is not None for sample in samples]
        return [0.0] * len(samples)


def test_token_ids_go_to_those_parts_alone_whose_tokenizer_is_the_first_readers():
    own, foreign = byte_tokenizer(), byte_tokenizer()
    foreign.add_tokens(["new"])
    text, plain = Reader("text", foreign, reads_ids=False), Reader("plain")
    model, other = Reader("model", own), Reader("other", foreign)
    whole = CombinedReward([Part(text), Part(plain), Part(model), Part(other)])
    assert whole.tokenizer is own
    whole.score(samples(1))
    assert [reader.given for reader in (text, plain, model, other)] == [[False], [True], [True], [False]]
