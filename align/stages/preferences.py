"""From comparisons and the options of a reward section to the rows of its trainer, and the trainer itself.

Plain sections train pairs (`RewardTrainer`), those with rankings, margins, smoothing, weights, markers, an LM term or
shared prompts train groups (`GroupRewardTrainer`). Held-out pairs are measured as they stand:
no margin, marker or weight. The replies whose mean score is made 0 are held-out demonstrations, or `reference_data`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from align.recipe import Recipe, RecipeError
from align.recipe.supervised_sections import RewardSection
from align.stages import common, supervised
from align.stages.user_code import own_callbacks, trainer_class
from align.trainers.reward import RewardTrainer
from align.trainers.reward_groups import GroupOptions, GroupRewardTrainer
from data_formats.records import Comparison, Demonstration, Scored

Encoded = tuple[list[Any], list[Comparison], dict[str, int]]


def encode(tokenizer: Any, comparisons: list[Comparison | Scored], section: RewardSection) -> Encoded:
    """Rows of held-out pairs, the comparisons they were made from (same order and number), and what was dropped."""
    from align.data.encode import encode_kept_comparisons
    from align.data.pairs import compared, encode_groups, plain_groups

    comparisons, left_out = compared(comparisons)
    if section.grouped:
        groups = plain_groups(comparisons)
        rows, kept, dropped = encode_groups(tokenizer, groups, section.max_length, section.on_overlong)
    else:
        rows, kept, dropped = encode_kept_comparisons(tokenizer, comparisons, section.max_length, section.on_overlong)
    return rows, [comparisons[index] for index in kept], dict(Counter(left_out) + Counter(dropped))


def encode_training(
    tokenizer: Any, comparisons: list[Comparison | Scored], section: RewardSection, seed: int
) -> Encoded:
    """Training rows, the comparisons that were kept for them, and what was dropped, by reason; `seed` is of sampling.

    Raises:
        DataError: a grade that the margin does not know.
    """
    from align.data.balance import balanced_prompts
    from align.data.pairs import binarised, compared, encode_groups, make_groups, strong_enough

    strong, dropped = strong_enough(comparisons, section.min_grade)  # scored replies come without min_grade
    if section.tag_balanced is not None:
        chosen = balanced_prompts(strong, section.tag_balanced, seed)
        dropped["not sampled by tags"] = len(strong) - len(chosen)
        strong = chosen
    if not section.grouped:
        rows, kept, more = encode(tokenizer, strong, section)
        return rows, kept, dropped | more
    groups, left_out = make_groups(
        strong,
        margin=section.margin,
        margin_scale=section.margin_scale,
        ties=section.ties,
        join=section.rankings == "prompts",
    )
    groups = binarised(groups) if section.binarise else groups
    rows, _, overlong = encode_groups(tokenizer, groups, section.max_length, section.on_overlong)
    return rows, compared(strong)[0], dict(Counter(dropped) + Counter(left_out) + Counter(overlong))


def binarised_accuracy(
    trainer: RewardTrainer, tokenizer: Any, heldout: list[Comparison], section: RewardSection
) -> float | None:
    """Share of the held-out pairs' GOOD and BAD pairs that are scored in their order: what binarised PMP is trained on,
    while the accuracy beside it is that of the plain replies. None where no pair is short enough with its marker."""
    from align.data.pairs import binarised, encode_groups, plain_groups

    on_overlong = "drop" if section.on_overlong == "error" else section.on_overlong
    rows, _, _ = encode_groups(tokenizer, binarised(plain_groups(heldout)), section.max_length, on_overlong)
    if not rows:
        return None
    chosen, rejected = side_scores(trainer, rows)
    return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(rows)


def side_scores(trainer: RewardTrainer, rows: list[Any]) -> tuple[list[float], list[float]]:
    """Scores of both sides of rows of one pair each, in the rows' order; like lengths are computed together."""
    order = sorted(range(len(rows)), key=lambda row: trainer.row_length(rows[row]))
    with supervised.evaluating(trainer):
        scores = trainer.predict([rows[row] for row in order]).predictions[:, :2].tolist()
    by_row = dict(zip(order, scores, strict=True))
    chosen, rejected = ([by_row[row][side] for row in range(len(rows))] for side in (0, 1))
    return chosen, rejected


def make_trainer(
    section: RewardSection,
    stage: str,
    args: Any,
    model: Any,
    tokenizer: Any,
    rows: list,
    heldout_rows: list,
    output_layer: Any,
) -> RewardTrainer:
    """The trainer that the section's options need, or a subclass of it that the section names."""
    made = trainer_class(section, stage, GroupRewardTrainer if section.grouped else RewardTrainer)
    sets = {"train_dataset": rows, "eval_dataset": heldout_rows or None, "processing_class": tokenizer}
    sets |= {"callbacks": own_callbacks(section, stage), "mixture": section.mixture}
    if not section.grouped:
        return made(model, args, **sets)
    options = GroupOptions(section.label_smoothing, section.centering, section.lm_weight, section.share_prompts)
    return made(model, args, options=options, output_layer=output_layer, **sets)


def output_layer(recipe: Recipe, section: RewardSection, path: str | Path, *, fresh_head: bool, stage: str) -> Any:
    """The output layer (V, d) of the language model at `path`; None where the section has no LM term.

    Raises:
        RecipeError: an LM term, but the origin is a reward model, which has no output layer.
    """
    if not section.lm_weight:
        return None
    if not fresh_head:
        sentence = f"{stage}.lm_weight: {path} is a reward model without a language model's output layer; set it to 0"
        raise RecipeError([sentence], recipe.name)
    from align.models.load import load_causal_lm

    head = load_causal_lm(path, recipe.model, use="frozen").get_output_embeddings()
    weight = head.weight.detach().clone()
    return weight + head.get_delta_weight("default") if hasattr(head, "get_delta_weight") else weight


def reference_demonstrations(recipe: Recipe, section: RewardSection, stage: str) -> list[Demonstration]:
    """Up to `reference_size` demonstrations.

    Raises:
        RecipeError: neither `reference_data` nor an `sft` stage with held-out demonstrations.
    """
    from align.data.load import load_records, train_and_heldout

    if section.reference_data:
        demos, reports = load_records(section.reference_data, Demonstration, recipe)
        for report in reports:
            common.LOG.info("%s: %s", stage, report.describe())
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
    common.need_rows(rows, dropped, what=f"{stage}.center_scores has no reference reply", keys=f"{stage}.max_length")
    batches = []
    for start in range(0, len(rows), section.eval_batch_size):
        ids_BT, mask_BT = pad_right(rows[start : start + section.eval_batch_size], tokenizer.pad_token_id)
        batches.append({"input_ids": ids_BT, "attention_mask": mask_BT})
    return batches, counts
