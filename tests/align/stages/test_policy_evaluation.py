"""The comparison of two policies: by scores, by a judge of both replies, and where the reward fails on some."""

import json
import logging
import math
import random

import pytest

from align.evaluation.replies import JudgedReply, judged_replies
from align.stages.policy_evaluation import Contest, comparison, winners, write_judgements
from data_formats.records import Message, Prompt
from reward.judges.functions import FunctionJudge
from reward.judges.rewards import RewardJudge
from reward.protocol import RewardError
from reward.sources import FunctionReward
from rollouts.protocol import SamplingParams
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case

PROMPTS = [Prompt((Message("user", word),), category=word) for word in "abcd"]
BY_SCORE = Contest("sft", "ppo", RewardJudge(FunctionReward(len, "reward"), described="the reward itself"))


def policies(*rows):
    return {"greedy": [[JudgedReply(f"text {score}", True, 3, {"reward": score})] for score in rows]}


def compared(prompts, before, after, contest=BY_SCORE):
    return comparison(prompts, before, after, winners(prompts, before, after, contest.judge), contest, "reward")


def test_a_prompt_without_a_verdict_is_in_no_comparison_and_in_the_file(tmp_path, caplog):
    before, after = policies(1.0, 2.0, math.nan, 4.0), policies(2.0, math.nan, 3.0, 4.0)
    with caplog.at_level(logging.WARNING, "align"):
        found = compared(PROMPTS, before, after)
    whole = compared([PROMPTS[0], PROMPTS[3]], policies(1.0, 4.0), policies(2.0, 4.0))
    assert "2 held-out prompts are in no comparison" in caplog.text
    assert found["win_rates"]["greedy"].pop("unjudged") == 2
    categories = [one.pop("by_category") for one in (found, whole)]
    assert {name: counts for name, counts in categories[0].items() if any(counts.values())} == categories[1]
    rates = [one.pop("win_rates")["greedy"] for one in (found, whole)]
    same = ("win", "tie", "loss", "judgments", "win_share", "low", "high", "judged_by", "first", "second")
    assert found == whole and all(rates[0][key] == rates[1][key] for key in same)
    assert (found["win"], found["tie"], found["loss"]) == (1, 1, 0)
    write_judgements(tmp_path / "eval.jsonl", PROMPTS, {"sft": before, "ppo": after})
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert [(line["sft_reward"], line["ppo_reward"]) for line in lines] == [(1, 2), (2, None), (None, 3), (4, 4)]
    assert not any("verdicts" in line for line in lines)
    with pytest.raises(RewardError, match="failed on a reply to each held-out prompt"):
        compared(PROMPTS[:1], policies(1.0), policies(math.nan))


def test_a_reward_as_judge_counts_what_its_scores_say():
    """Every figure of the wins once more, from the scores alone."""
    drawn = random.Random(3)
    before, after = ({"greedy": [], "sampled": []} for _ in range(2))
    for one in (before, after):
        for way, each in (("greedy", 1), ("sampled", 3)):
            rows = [[float(drawn.randint(0, 3)) for _ in range(each)] for _ in PROMPTS]
            one[way] = [[JudgedReply("", True, 3, {"reward": score}) for score in row] for row in rows]
    found = compared(PROMPTS, before, after)
    assert (found["judge"], found["judged_by"]) == ("reward", "the reward itself")
    for way, suffix in (("greedy", ""), ("sampled", "_sampled")):
        sides = ([one.scores["reward"] for row in policy[way] for one in row] for policy in (before, after))
        signs = [(new > old) - (new < old) for old, new in zip(*sides, strict=True)]
        counts = [signs.count(sign) for sign in (1, 0, -1)]
        assert [found[f"{name}{suffix}"] for name in ("win", "tie", "loss")] == counts
        rates = found["win_rates"][way]
        assert rates["win_share"] == (counts[0] + counts[1] / 2) / len(signs)
        each = len(signs) // 4
        one = {key: rates["by_category"]["b"][key] for key in ("win", "tie", "loss")}
        own = signs[each : 2 * each]
        assert found[f"by_category{suffix}"]["b"] == one
        assert list(one.values()) == [own.count(sign) for sign in (1, 0, -1)]
        assert found[f"decided_won{suffix}"] == (counts[0] / (counts[0] + counts[2]) if counts[0] + counts[2] else None)


def test_a_judge_of_both_replies_decides_whatever_the_scores_say(tmp_path):
    def verdicts(prompts, first, second, category):
        return ["second" if name == "a" else "first" if name == "b" else None for name in category]

    contest = Contest("sft", "mine", FunctionJudge(verdicts, name="judge", described="a test"))
    before, after = policies(1.0, 1.0, 1.0, math.nan), policies(0.0, 2.0, 0.0, 5.0)
    after["greedy"][2] = before["greedy"][2]  # the same text: nobody is asked
    won = winners(PROMPTS, before, after, contest.judge)
    found = comparison(PROMPTS, before, after, won, contest, "reward")
    rates = found["win_rates"]["greedy"]
    assert (found["judge"], found["win"], found["tie"], found["loss"], rates["no_verdict"]) == ("judge", 1, 1, 1, 1)
    assert found["headline"][-1] == (
        "win / tie / loss of mine against sft, greedy, judged by a test",
        None,
        "1 / 1 / 1",
    )
    write_judgements(tmp_path / "eval.jsonl", PROMPTS, {"sft": before, "ppo": after}, won)
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert [line["verdicts"]["greedy"] for line in lines] == [[["win"]], [["loss"]], [["tie"]], [[None]]]


def test_replies_are_judged_as_the_stage_says():
    def picky(prompts, completions):
        if any(prompt[-1]["content"] == "b" for prompt in prompts):
            raise ValueError("not this one")
        return [1.0] * len(completions)

    engine = ScriptedEngine(lambda prompt, number: ppo_case.TOKENIZER("yes")["input_ids"])
    given = (engine, ppo_case.TOKENIZER, PROMPTS, SamplingParams(max_new_tokens=8), [FunctionReward(picky)])
    with pytest.raises(RewardError, match="not this one"):
        judged_replies(*given)
    scores = [row[0].scores["picky"] for row in judged_replies(*given, "mask")]
    assert [None if math.isnan(score) else score for score in scores] == [1.0, None, 1.0, 1.0]
