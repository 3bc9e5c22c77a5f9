"""The replies whose mean score is made 0: held-out demonstrations, or `reference_data` where the recipe names some."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from align.recipe import Recipe, RecipeError
from align.recipe.stages import RewardSection
from data_formats.records import Demonstration


def reference_demonstrations(recipe: Recipe, section: RewardSection, stage: str) -> list[Demonstration]:
    """Up to `reference_size` demonstrations.

    Raises:
        RecipeError: neither `reference_data` nor an `sft` stage with held-out demonstrations.
    """
    from align.data.load import load_records, train_and_heldout

    if section.reference_data:
        demos, _ = load_records(section.reference_data, Demonstration, recipe)
    elif recipe.sft is not None:
        _, demos, _ = train_and_heldout(recipe.sft, Demonstration, recipe)
    else:
        demos = []
    if not demos:
        raise RecipeError(
            [f"{stage}.center_scores: there are no held-out demonstrations; name some in {stage}.reference_data"],
            recipe.name,
        )
    return demos[: section.reference_size]


def reference_batches(recipe: Recipe, section: RewardSection, tokenizer: Any, stage: str) -> list[dict[str, Tensor]]:
    """Batches (`input_ids`, `attention_mask`) of prompt + last assistant reply, each ending with `<|im_end|>`."""
    from align.data.collate import pad_right
    from align.data.encode import encode_prompts, encode_replies

    demos = reference_demonstrations(recipe, section, stage)
    asked = [exchange for demo in demos if (exchange := demo.last_exchange()) is not None]
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in asked])
    replies = encode_replies(tokenizer, [reply for _, reply in asked])
    whole = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    rows = sorted((row for row in whole if len(row) <= section.max_length), key=len)
    batches = []
    for start in range(0, len(rows), section.eval_batch_size):
        ids_BT, mask_BT = pad_right(rows[start : start + section.eval_batch_size], tokenizer.pad_token_id)
        batches.append({"input_ids": ids_BT, "attention_mask": mask_BT})
    return batches
