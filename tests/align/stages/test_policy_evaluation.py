"""The comparison of two policies where the reward fails on some replies to held-out prompts."""

import json
import logging
import math

import pytest

from align.evaluation.replies import JudgedReply, judged_replies
from align.stages import policy_evaluation
from data_formats.records import Message, Prompt
from reward.protocol import RewardError
from reward.sources import FunctionReward
from rollouts.protocol import SamplingParams
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case

PROMPTS = [Prompt((Message("user", word),), category=word) for word in "abcd"]


def policies(*rows):
    return {"greedy": [[JudgedReply("text", True, 3, {"reward": score})] for score in rows]}


def test_a_prompt_without_a_verdict_is_in_no_comparison_and_in_the_file(tmp_path, caplog):
    before, after = policies(1.0, 2.0, math.nan, 4.0), policies(2.0, math.nan, 3.0, 4.0)
    with caplog.at_level(logging.WARNING, "align"):
        found = policy_evaluation.comparison(*policy_evaluation._judged(PROMPTS, before, after), "reward")
    whole = policy_evaluation.comparison([PROMPTS[0], PROMPTS[3]], policies(1.0, 4.0), policies(2.0, 4.0), "reward")
    assert found == whole and (found["win"], found["tie"], found["loss"]) == (1, 1, 0)
    policy_evaluation.write_judgements(tmp_path / "eval.jsonl", PROMPTS, {"sft": before, "ppo": after})
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    assert [(line["sft_reward"], line["ppo_reward"]) for line in lines] == [(1, 2), (2, None), (None, 3), (4, 4)]


def test_where_every_prompt_is_judged_nothing_is_left_out():
    before, after = policies(1.0, 2.0), policies(2.0, 3.0)
    assert policy_evaluation._judged(PROMPTS[:2], before, after) == (PROMPTS[:2], before, after)
    with pytest.raises(RewardError, match="failed on a reply to each held-out prompt"):
        policy_evaluation._judged(PROMPTS[:1], policies(1.0), policies(math.nan))


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
