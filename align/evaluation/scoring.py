"""Scores of a reward on both replies of comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from align.data.encode import encode_prompts, encode_replies
from data_formats.chatml import reply_text
from data_formats.records import Comparison
from reward.protocol import Reward, RewardError, Sample
from reward.sources import ModelReward

AT_ONCE = 512  # pairs


def best_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def score_comparisons(
    reward: Reward, comparisons: Sequence[Comparison], told: Callable[[int], None] = lambda done: None
) -> tuple[list[float], list[float]]:
    """Scores of the chosen and of the rejected replies, in the comparisons' order.

    Our own reward models get the ids that the stages train and measure them on, tools on offer included; any other gets
    the text and brings its own template. Nothing is left out for its length.

    Args:
        told: is called with the number of pairs that are done, now and then.

    Raises:
        RewardError: the reward failed, or gave something that is not finite; names the pairs it was among.
    """
    chosen: list[float] = []
    rejected: list[float] = []
    for start in range(0, len(comparisons), AT_ONCE):
        some = comparisons[start : start + AT_ONCE]
        try:
            scores = reward.score(_samples(reward, some))
        except RewardError as error:
            raise RewardError(f"{error}; that was among the pairs {start + 1} to {start + len(some)}") from error
        chosen += scores[0::2]
        rejected += scores[1::2]
        told(start + len(some))
    return chosen, rejected


def _samples(reward: Reward, comparisons: Sequence[Comparison]) -> list[Sample]:
    """Chosen and rejected in turns."""
    sides = [
        ((*pair.prompt, *turns), reply_text(reply), pair.tools)
        for pair in comparisons
        for turns, reply in ((pair.chosen_turns, pair.chosen_reply), (pair.rejected_turns, pair.rejected_reply))
    ]
    if not isinstance(reward, ModelReward):
        return [Sample(prompt, reply) for prompt, reply, _ in sides]
    tokenizer = reward.tokenizer
    prompts = encode_prompts(tokenizer, [prompt for prompt, _, _ in sides], [tools for _, _, tools in sides])
    replies = encode_replies(tokenizer, [reply for _, reply, _ in sides])
    return [
        Sample(prompt, text, tuple(prompt_ids), tuple(reply_ids))
        for (prompt, text, _), prompt_ids, reply_ids in zip(sides, prompts, replies, strict=True)
    ]
