"""The prompts of the stages that sample replies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from align.recipe.errors import RecipeError
from align.recipe.rollout_section import RolloutSection
from align.stages import common
from data_formats.records import Prompt


def check_room(model: Any, rollout: RolloutSection, stage: str) -> None:
    """Raises RecipeError where the longest prompt with its longest reply does not fit into the loaded model."""
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and rollout.max_length > room:
        lengths = f"max_prompt_length + max_completion_length = {rollout.max_length}"
        sentence = f"{stage}.rollout: {lengths} is more than the model's max_position_embeddings ({room}); lower them"
        raise RecipeError([sentence])


def fitting(
    prompts: list[Prompt], tokenizer: Any, rollout: RolloutSection, key: str
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of at most `max_prompt_length` tokens, and how many were left out or cut, by reason.

    With `on_overlong_prompt: truncate` a longer one loses its oldest exchanges (`align.data.encode.fit_turns`).

    Args:
        key: where the recipe names them (`ppo.data`), for the error.

    Raises:
        EmptyDatasetError: none is left.
    """
    from align.data.encode import encode_prompts, fit_turns

    longest, cuts = rollout.max_prompt_length, rollout.on_overlong_prompt == "truncate"
    encoded = encode_prompts(tokenizer, [one.messages for one in prompts], [one.tools for one in prompts])
    kept: list[Prompt] = []
    counts: Counter[str] = Counter()
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) <= longest:
            kept.append(prompt)
            continue
        fitted = fit_turns(tokenizer, prompt.messages, longest, prompt.tools) if cuts else None
        counts["longer than max_prompt_length" if fitted is None else "cut to max_prompt_length"] += 1
        if fitted is not None:
            kept.append(replace(prompt, messages=fitted[0]))
    keys = f"{key} and {key.partition('.')[0]}.rollout.max_prompt_length"
    common.need_rows(kept, counts, what=f"no prompt of {key} is left", keys=keys)
    return kept, dict(counts)
