"""The replies whose mean score is made 0: held-out demonstrations, or `reference_data` where the recipe names some."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from align.recipe import Recipe, RecipeError
from align.recipe.supervised_sections import RewardSection
from align.stages.common import LOG, need_rows
from data_formats.records import Demonstration


def reference_demonstrations(recipe: Recipe, section: RewardSection, stage: str) -> list[Demonstration]:
    """Up to `reference_size` demonstrations.

    Raises:
        RecipeError: neither `reference_data` nor an `sft` stage with held-out demonstrations.
    """
    from align.data.load import load_records, train_and_heldout

    if section.reference_data:
        demos, reports = load_records(section.reference_data, Demonstration, recipe)
        for report in reports:
            LOG.info("%s: %s", stage, report.describe())
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


def reference_batches(
    recipe: Recipe, section: RewardSection, tokenizer: Any, stage: str
) -> tuple[list[dict[str, Tensor]], dict[str, int]]:
    """Batches (`input_ids`, `attention_mask`) of prompt + last assistant reply, each ending with `<|im_end|>`.

    Returns:
        The batches, and how many replies they hold (`references`) and were too long to (`references_dropped`).

    Raises:
        EmptyDatasetError: none is short enough.
    """
    from align.data.encode import encode_prompts, encode_replies
    from align.runtime.padding import pad_right

    demos = reference_demonstrations(recipe, section, stage)
    asked = [(*exchange, demo.tools) for demo in demos if (exchange := demo.last_exchange()) is not None]
    prompts = encode_prompts(tokenizer, [prompt for prompt, _, _ in asked], [tools for *_, tools in asked])
    replies = encode_replies(tokenizer, [reply for _, reply, _ in asked])
    whole = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    rows = sorted((row for row in whole if len(row) <= section.max_length), key=len)
    counts = {"references": len(rows), "references_dropped": len(whole) - len(rows)}
    dropped = {"longer than max_length": counts["references_dropped"]}
    need_rows(rows, dropped, what=f"{stage}.center_scores has no reference reply", keys=f"{stage}.max_length")
    batches = []
    for start in range(0, len(rows), section.eval_batch_size):
        ids_BT, mask_BT = pad_right(rows[start : start + section.eval_batch_size], tokenizer.pad_token_id)
        batches.append({"input_ids": ids_BT, "attention_mask": mask_BT})
    return batches, counts
