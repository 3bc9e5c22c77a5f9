"""The one way in which replies that stand in files are scored: by `align score`, `align evaluate-reward` and the tests.

A reward that reads token ids gets those that the stages train and measure it on, made by its own tokenizer, tools on
offer included; any other gets the text and brings its own template. That is what a trainer hands to the same reward, so
on the same replies asked at once the scores are the trainer's to the last bit. Nothing is left out for its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from align.data.encode import encode_prompts, encode_replies
from align.data.replies import PromptedReply, sides
from data_formats.records import Comparison
from reward.failures import MAX_FAILED_SHARE, OnRewardError, judge_all
from reward.protocol import Reward, RewardError, Sample, Verdict

AT_ONCE = 1024  # replies that a reward is asked for in one call; it makes batches of like length of them


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def judge_replies(
    reward: Reward, replies: Sequence[PromptedReply], on_error: OnRewardError = "stop"
) -> tuple[Verdict, list[str]]:
    """The verdict on replies asked at once, and why some have none (`reward.failures.judge_all`).

    Raises:
        RewardError: the reward failed, with `mask` on more replies than may.
    """
    return judge_all(reward, samples_for(reward, replies), on_error, int(MAX_FAILED_SHARE * len(replies)))


def score_comparisons(
    reward: Reward, comparisons: Sequence[Comparison], told: Callable[[int], None] = lambda done: None
) -> tuple[list[float], list[float]]:
    """Scores of the chosen and of the rejected replies, in the comparisons' order.

    Args:
        told: is called with the number of pairs that are done, now and then.

    Raises:
        RewardError: the reward failed, or gave something that is not finite; names the pairs it was among.
    """
    chosen: list[float] = []
    rejected: list[float] = []
    for start in range(0, len(comparisons), AT_ONCE // 2):
        some = comparisons[start : start + AT_ONCE // 2]
        try:
            verdict, _ = judge_replies(reward, [side for pair in some for side in sides(pair)])
        except RewardError as error:
            raise RewardError(f"{error}; that was among the pairs {start + 1} to {start + len(some)}") from error
        chosen += verdict.scores[0::2]
        rejected += verdict.scores[1::2]
        told(start + len(some))
    return chosen, rejected


def samples_for(reward: Reward | None, replies: Sequence[PromptedReply]) -> list[Sample]:
    """The replies as this reward is to get them; as text for None."""
    tokenizer = getattr(reward, "tokenizer", None) if getattr(reward, "reads_ids", True) else None
    columns = [None if one.columns is None else dict(one.columns) for one in replies]
    if tokenizer is None:
        return [Sample(one.prompt, one.reply, columns=own) for one, own in zip(replies, columns, strict=True)]
    prompts = encode_prompts(tokenizer, [one.prompt for one in replies], [one.tools for one in replies])
    completions = encode_replies(tokenizer, [one.reply for one in replies])
    return [
        Sample(one.prompt, one.reply, tuple(prompt_ids), tuple(reply_ids), columns=own)
        for one, own, prompt_ids, reply_ids in zip(replies, columns, prompts, completions, strict=True)
    ]
