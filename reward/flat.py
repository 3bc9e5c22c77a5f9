"""Groups of `reward.layout` end to end in one row without padding, their attention computed part by part.

A prompt attends to itself, each reply to its prompt and itself: no (T, T) mask is made, nothing that is masked is
computed, and everything outside attention sees exactly the tokens there are. That is what makes sharing pay on CPUs.
On accelerators many small attention calls are slow, so there the groups take one masked call (`tree_batch`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from align.runtime.peft_model import base_of
from reward.layout import TokenGroup, tree_problem

NAME = "prompt_and_replies"


def flat_batch(groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
    """Groups in one row, as `RewardModel.forward` takes them.

    Returns:
        `input_ids`, `position_ids` (1, T) int64, `attention_mask` (1, T) of ones, `members` (N, T) bool, `rows` and
        `starts` (N,) int64 as of `tree_batch`, and `parts` (S, 2) int64: group and length of each prompt and reply,
        the prompt first in its group.
    """
    ids, positions, parts, starts, spans, at = [], [], [], [], [], 0
    for index, group in enumerate(groups):
        first, length = at, len(group.prompt_ids)
        for part, tokens in enumerate((group.prompt_ids, *group.reply_ids)):
            ids.extend(tokens)
            offset = length if part else 0
            positions.extend(range(offset, offset + len(tokens)))
            parts.append((index, len(tokens)))
            if part:
                starts.append(at)
                spans.append((first, first + length, at, at + len(tokens)))
            at += len(tokens)
    columns_T, spans_4N1 = torch.arange(at), torch.tensor(spans).T[..., None]
    from_prompt, to_prompt, from_reply, to_reply = spans_4N1
    prompt_NT = (columns_T >= from_prompt) & (columns_T < to_prompt)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": torch.ones(1, at, dtype=torch.int64),
        "members": prompt_NT | ((columns_T >= from_reply) & (columns_T < to_reply)),
        "rows": torch.zeros(len(starts), dtype=torch.int64),
        "starts": torch.tensor(starts),
        "parts": torch.tensor(parts),
    }


def flat_problem(backbone: nn.Module, accepted: frozenset[str], device: torch.device | None = None) -> str | None:
    """Why a backbone does not take `flat_batch`es, None where it does; `device`: where it will be, default: is."""
    if problem := tree_problem(backbone.config, accepted):
        return problem
    if backbone.config.get_text_config()._attn_implementation != "sdpa":
        return "its attention is not sdpa"
    if (device or backbone.device).type != "cpu":
        return "it is not on a CPU"
    plain = base_of(backbone)
    if not getattr(plain, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    if getattr(plain, "is_gradient_checkpointing", False):
        return "it checkpoints gradients, and would compute again without the parts"
    return None


class Parts:
    """What the attention of one forward needs to know of a flat row; made once, used in every layer.

    Args:
        parts_S2: `parts` of `flat_batch`.
    """

    def __init__(self, parts_S2: Tensor):
        self.lengths: list[int] = []
        self.prompts: list[int | None] = []  # where each part's prompt stands among the parts; None: it is one
        self.masks: list[Tensor | None] = []
        prompt, last = 0, None
        for index, (group, length) in enumerate(parts_S2.tolist()):
            is_prompt, last = group != last, group
            prompt = index if is_prompt else prompt
            before = self.lengths[prompt] if not is_prompt else 0
            seen = None if is_prompt else torch.ones(length, before + length, dtype=torch.bool).tril(before)
            self.lengths.append(length)
            self.prompts.append(None if is_prompt else prompt)
            self.masks.append(seen)


def parts_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    parts: Parts,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot products of (1, H, T, d) part by part, as transformers calls its attentions; gives (1, T, H, d)."""
    repeats = query.shape[1] // key.shape[1]
    heads = (query, repeat_kv(key, repeats), repeat_kv(value, repeats))
    queries, keys, values = (states.split(parts.lengths, dim=2) for states in heads)
    found = []
    for index, (prompt, mask) in enumerate(zip(parts.prompts, parts.masks, strict=True)):
        own, options = (keys[index], values[index]), {"dropout_p": dropout, "scale": scaling}
        if prompt is None:
            found.append(F.scaled_dot_product_attention(queries[index], *own, is_causal=True, **options))
            continue
        seen = (torch.cat(pair, dim=2) for pair in zip((keys[prompt], values[prompt]), own, strict=True))
        found.append(F.scaled_dot_product_attention(queries[index], *seen, attn_mask=mask, **options))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, parts_attention)


@contextmanager
def by_parts(config: Any) -> Iterator[None]:
    """A backbone's attention computed part by part for the time of one forward."""
    text = config.get_text_config()
    before, text._attn_implementation = text._attn_implementation, NAME
    try:
        yield
    finally:
        text._attn_implementation = before
