"""Replies to held-out prompts, sampled at temperature 1 and top-p 1, and plain figures about them.

`end_rate` is the share that ended with `<|im_end|>` themselves, `distinct` the share of different texts among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from align.data.encode import encode_prompts
from align.evaluation.replies import decodings, judged_replies
from data_formats.records import Demonstration, Message, Prompt
from rollouts.protocol import Engine

Row = dict[str, Any]


def heldout_prompts(demos: Sequence[Demonstration], size: int) -> list[Prompt]:
    """Up to `size` different prompts: what stands before the last assistant turn, that turn as the reference.

    Thoughts of earlier replies are left out, as chat templates of reasoning models do.
    """
    chosen: dict[tuple[Message, ...], Prompt] = {}
    for demo in demos:
        exchange = demo.last_exchange()
        if exchange is not None and len(chosen) < size:
            turns = tuple(replace(turn, reasoning="") if turn.reasoning else turn for turn in exchange[0])
            chosen.setdefault(turns, Prompt(turns, demo.category, reference=exchange[1], tools=demo.tools))
    return list(chosen.values())


def fitting_prompts(tokenizer: Any, prompts: Sequence[Prompt], max_length: int) -> list[Prompt]:
    """Those of at most `max_length` tokens."""
    encoded = encode_prompts(tokenizer, [prompt.messages for prompt in prompts], [prompt.tools for prompt in prompts])
    lengths = [len(ids) for ids in encoded]
    return [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= max_length]


def sample_replies(
    engine: Engine, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int, seed: int, first: int = 0
) -> list[Row]:
    """One reply to each prompt, as rows of `samples.jsonl`; the prompts stand from `first` on in a list that ranks
    share."""
    if not prompts:
        return []
    params = decodings(tokenizer, num_samples=1, max_new_tokens=max_new_tokens, seed=seed)["sampled"]
    judged = judged_replies(engine, tokenizer, prompts, replace(params, first=first), ())
    return [
        {
            "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
            **reply.row(),
            "reference": prompt.reference,
            "category": prompt.category,
        }
        for prompt, (reply,) in zip(prompts, judged, strict=True)
    ]


def reply_figures(samples: Sequence[Row]) -> dict[str, Any]:
    """`replies`, `end_rate`, `distinct` and `reply_tokens` (their mean length); empty without samples."""
    if not samples:
        return {}
    n = len(samples)
    return {
        "replies": n,
        "end_rate": sum(sample["finished"] for sample in samples) / n,
        "distinct": len({sample["reply"] for sample in samples}) / n,
        "reply_tokens": sum(sample["tokens"] for sample in samples) / n,
    }


def replies_by_category(samples: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """`reply_figures` of the samples of each category that has a name."""
    names = sorted({sample["category"] for sample in samples} - {""})
    return {name: reply_figures([sample for sample in samples if sample["category"] == name]) for name in names}
