"""A reward and a function of both replies as judges."""

import pytest
import torch

from data_formats.records import Message
from reward.judges.functions import FunctionJudge
from reward.judges.protocol import ALIKE, Judge, Judgment, ReplyPair
from reward.judges.rewards import RewardJudge
from reward.protocol import RewardError, RewardUnavailableError, Sample
from reward.sources import FunctionReward

PROMPT = (Message("user", "q"),)


def pair(first, second, **columns):
    return ReplyPair(Sample(PROMPT, first, columns=columns), Sample(PROMPT, second, columns=columns))


def length(prompts, completions):
    if "bad" in completions:
        raise ValueError("no such word")
    return [float(len(text)) for text in completions]


def test_the_higher_score_wins_and_equal_ones_tie():
    judge = RewardJudge(FunctionReward(length), described="the length")
    assert isinstance(judge, Judge) and (judge.name, judge.described) == ("length", "the length")
    assert judge.compare([pair("aaa", "b"), pair("a", "bbb"), pair("aa", "bb"), pair("a", "a"), pair("a", "bad")]) == [
        [Judgment("first", scores=(3.0, 1.0))],
        [Judgment("second", scores=(1.0, 3.0))],
        [Judgment("tie", scores=(2.0, 2.0))],
        [ALIKE],
        [Judgment(None, note="reward 'length' failed: ValueError: no such word")],
    ]
    assert RewardJudge(FunctionReward(length)).described == "the reward length"
    assert judge.compare([]) == [] and judge.compare([pair("bad", "bad")]) == [[ALIKE]]


def test_a_reply_of_several_pairs_is_scored_once():
    asked = []

    def noted(prompts, completions):
        asked.extend(completions)
        return length(prompts, completions)

    shared = Sample(PROMPT, "base")
    pairs = [ReplyPair(shared, Sample(PROMPT, text)) for text in ("a", "bb", "base")]
    found = RewardJudge(FunctionReward(noted)).compare(pairs)
    assert asked == ["base", "a", "bb"] and [one.winner for (one,) in found] == ["first", "first", "tie"]


def test_a_reward_that_fails_on_many_replies_or_is_not_to_be_had_fails_as_judge():
    class Gone:
        name = "gone"

        def score(self, samples):
            raise RewardUnavailableError("no connection")

    with pytest.raises(RewardError, match="reply number 2 that cannot be judged"):
        RewardJudge(FunctionReward(length)).compare([pair("a", "bad"), pair("bad", "b")])
    with pytest.raises(RewardUnavailableError):
        RewardJudge(Gone()).compare([pair("a", "b")])


def test_a_function_sees_both_replies_the_prompts_and_the_columns_it_names():
    seen = {}

    def shorter(prompts, first, second, reference):
        seen.update(prompts=prompts, first=first, second=second, reference=reference)
        return (len(b) - len(a) for a, b in zip(first, second, strict=True))

    judge = FunctionJudge(shorter)
    assert isinstance(judge, Judge) and (judge.name, judge.described) == ("shorter", "the function shorter")
    pairs = [
        pair("aa", "b", reference="x", other=1),
        pair("same", "same"),
        pair("a", "bb"),
        pair("a", "b", reference="y"),
    ]
    assert judge.compare(pairs) == [[Judgment("second")], [ALIKE], [Judgment("first")], [Judgment("tie")]]
    assert seen == {
        "prompts": [[{"role": "user", "content": "q"}]] * 3,
        "first": ["aa", "a", "a"],
        "second": ["b", "bb", "b"],
        "reference": ["x", None, "y"],
    }


def test_verdicts_are_words_or_signed_numbers_and_may_be_none():
    said = ["first", "second", "tie", None, 0.5, -2, 0, float("nan")]
    judge = FunctionJudge(lambda prompts, first, second: said, name="spoken")
    found = judge.compare([pair("a", "b")] * len(said))
    assert [one.winner for (one,) in found] == ["first", "second", "tie", None, "first", "second", "tie", None]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([True], r"judge 'f' gave True for pair 0: it must be"),
        (torch.tensor([True]), r"gave tensor\(True\) for pair 0"),
        (torch.tensor(1.0), r"must give a list of one verdict a pair, it gave tensor\(1\.\)"),
        (["A"], r"gave 'A' for pair 0"),
        (["first", "first"], "gave 2 verdicts for 1 pairs"),
        ("first", "must give a list of one verdict a pair, it gave 'first'"),
        (None, "must give a list"),
    ],
)
def test_what_is_no_verdict_is_an_error(given, words):
    def f(prompts, first, second):
        return given

    with pytest.raises(RewardError, match=words):
        FunctionJudge(f).compare([pair("a", "b")])


def test_a_function_that_fails_and_what_is_no_function():
    def f(prompts, first, second):
        raise SystemExit(1)

    with pytest.raises(RewardError, match="judge 'f' failed: SystemExit: 1"):
        FunctionJudge(f).compare([pair("a", "b")])
    with pytest.raises(TypeError, match=r"must be a function \(prompts, first, second, \*\*columns\)"):
        FunctionJudge("f")
