"""The prompts of the stages that sample replies."""

from __future__ import annotations

from typing import Any

from align.recipe.ppo import RolloutSection
from align.stages import common
from data_formats.records import Prompt


def fitting(
    prompts: list[Prompt], tokenizer: Any, rollout: RolloutSection, key: str
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of at most `max_prompt_length` tokens, and how many were left out.

    Args:
        key: where the recipe names them (`ppo.data`), for the error.

    Raises:
        EmptyDatasetError: none is left.
    """
    from align.data.encode import encode_prompts

    longest = rollout.max_prompt_length
    encoded = encode_prompts(tokenizer, [one.messages for one in prompts], [one.tools for one in prompts])
    lengths = [len(ids) for ids in encoded]
    kept = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length <= longest]
    longer = len(prompts) - len(kept)
    dropped = {"longer than max_prompt_length": longer} if longer else {}
    keys = f"{key} and {key.partition('.')[0]}.rollout.max_prompt_length"
    common.need_rows(kept, dropped, what=f"no prompt of {key} is left", keys=keys)
    return kept, dropped
