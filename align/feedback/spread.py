"""How far the members of an ensemble differ about replies: several rewards, or one reward model under dropout.

One reward model becomes an ensemble by dropout of what its head reads (Gal & Ghahramani 2016): each member is the head
with another tenth of the state's dimensions left out, the same ones for all replies, so one pass of the model serves
all members. Reward models are trained without dropout, so the tenth is a choice of ours: it ranks pairs, and what it
says in nats is of that choice. Members that were trained from other seeds or on other halves of the data say more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from align.data.replies import PromptedReply
from align.evaluation.scoring import best_device, judge_replies, samples_for
from align.feedback.collect import CollectError
from align.feedback.items import FeedbackItem
from align.runs.progress import StageProgress
from align.runtime.json_files import Row
from align.runtime.memory import memory_errors
from align.runtime.pieces import Pieces
from align.serving.named import named_reward
from reward.head import ScalarHead
from reward.headed import HeadedModel
from reward.sources import ModelReward

if TYPE_CHECKING:
    from reward.protocol import Reward

AT_ONCE = 256  # items in a piece
MEMBERS, DROPPED = 64, 0.1  # heads of one reward model, and the share of its state that each leaves out


def member_logits(
    rewards: Sequence[str], items: Sequence[FeedbackItem], pieces: Pieces, *, seed: int
) -> list[np.ndarray]:
    """What each member says of the replies of each item, as logits: arrays (members, replies).

    Args:
        rewards: words that name them (`align.serving.named`); one reward model of ours, or several rewards.
        pieces: where what is scored is kept.
        seed: of what is left out.

    Raises:
        CollectError: a single reward that is no reward model of ours.
        MissingFileError, ModelFileError, RecipeError, RewardError: nothing there, torn, or it failed.
    """
    cut = [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]
    with StageProgress("replies scored", len(rewards) * len(items)) as progress:
        for at, word in enumerate(rewards):
            with memory_errors(word, "the reward's batch size"):
                reward = cache(partial(_member, word, seed if len(rewards) == 1 else None))
                for number, some in enumerate(cut):
                    pieces.make(at * len(cut) + number, partial(_scored, reward, some))
                    progress.update(at * len(items) + number * AT_ONCE + len(some))
    rows = list(pieces.rows(len(rewards) * len(cut)))
    by_reward = [rows[at * len(items) : (at + 1) * len(items)] for at in range(len(rewards))]
    return [np.concatenate([np.array(row["logits"]).T for row in of_item]) for of_item in zip(*by_reward, strict=True)]


def _member(word: str, seed: int | None) -> Reward:
    """The reward; with a seed a reward model whose head has become several."""
    reward = named_reward(word, device=best_device()).reward
    if seed is not None:
        model = getattr(reward, "model", None)
        if not isinstance(reward, ModelReward) or not isinstance(model, HeadedModel):
            raise CollectError(
                f"{word} alone says nothing of how sure it is: name a reward model of ours, whose head gets dropout, "
                "or several rewards, whose spread is taken"
            )
        model.head = dropped(model.head, seed)
    return reward


def dropped(head: ScalarHead, seed: int) -> ScalarHead:
    """A head of `MEMBERS` units, each the given one with a share `DROPPED` of its inputs left out, the rest scaled."""
    generator = torch.Generator().manual_seed(seed)
    kept_Md = torch.rand(MEMBERS, head.weight.shape[1], generator=generator) >= DROPPED
    several = ScalarHead(head.weight.shape[1], zero=True)
    weight_Md = head.weight.detach() * kept_Md.to(head.weight.device) / (1 - DROPPED)
    several.weight = nn.Parameter(weight_Md, requires_grad=False)
    return several


def _scored(reward: Any, items: Sequence[FeedbackItem]) -> Iterator[Row]:
    """A row an item: of each reply what each member says. A reward model's scores are made logits again by its scale;
    other rewards are taken for logits as they are."""
    one = reward()
    asked = [PromptedReply(item.prompt, reply.reply, item.tools) for item in items for reply in item.replies]
    if isinstance(one, ModelReward):
        scale = float(getattr(one.model, "scale", 1.0))
        found = [np.atleast_1d(row) * scale for row in map(np.array, one.outputs(samples_for(one, asked)))]
    else:
        found = [np.array([score]) for score in judge_replies(one, asked)[0].scores]
    if not all(np.isfinite(row).all() for row in found):
        raise CollectError(f"{one.name} gave a score that is not finite")
    said = iter(found)
    for item in items:
        yield {"item": item.id, "logits": [next(said).tolist() for _ in item.replies]}
