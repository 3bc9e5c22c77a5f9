"""How far a policy has moved from another: the KL of the two, from replies that it sampled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from align.data.encode import encode_prompts
from align.evaluation.replies import JudgedReply
from align.recipe import Recipe
from align.runs.errors import TrainingError
from align.runtime.ranks import spread
from align.stages import common
from data_formats.records import Prompt


def reply_kl(
    recipe: Recipe,
    before: str | Path,
    after: str | Path,
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[JudgedReply]],
    batch_size: int,
) -> float:
    """KL(after || before) in nats a reply, as PPO's evaluations measure it: the mean over replies of the difference of
    their log-probabilities (k1), which is unbiased for what is sampled at temperature 1 and top-p 1. Every rank calls
    it, and computes its share.

    Args:
        before, after: folders or hub ids of the models; one of them is in memory at a time.
        replies: sampled so from the model at `after`, a list a prompt.
        batch_size: replies that are computed at once.
    """
    asked = list(zip(prompts, replies, strict=True))

    def share(part: Sequence[tuple[Prompt, Sequence[JudgedReply]]], first: int, path: str | Path) -> list[float]:
        return reply_logps(recipe, path, *zip(*part, strict=True), batch_size)

    sides = (spread(asked, partial(share, path=path), TrainingError) for path in (after, before))
    return fmean(new - old for new, old in zip(*sides, strict=True))


@torch.no_grad()
def reply_logps(
    recipe: Recipe,
    path: str | Path,
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[JudgedReply]],
    batch_size: int,
) -> list[float]:
    """Log-probability of each reply, prompt by prompt, by the model at `path`; nats, of the whole distribution at
    temperature 1, summed over the reply's tokens."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import recipe_tokenizer
    from align.trainers.ppo.forward import reply_logprobs
    from align.trainers.ppo.types import TokenBatch

    device, tokenizer = common.device(), recipe_tokenizer(str(path), recipe.model)
    model = load_causal_lm(str(path), recipe.model, tokenizer=tokenizer, use="frozen").to(device)
    asked = encode_prompts(tokenizer, [prompt.messages for prompt in prompts], [prompt.tools for prompt in prompts])
    rows = [(ids, reply.ids) for ids, own in zip(asked, replies, strict=True) for reply in own]
    found: list[float] = []
    for start in range(0, len(rows), batch_size):
        batch = TokenBatch.from_ids(*zip(*rows[start : start + batch_size], strict=True), tokenizer.pad_token_id or 0)
        found += reply_logprobs(model, batch.to(device), 1.0).double().sum(dim=1).tolist()
    return found
