"""PMP and RM: train a reward model on comparisons and measure it on held-out ones.

Qwen report 3.2.1: preference-model pretraining on many coarse comparisons starting from the base model, then finetuning
on fewer clean ones; one epoch. A causal LM as origin gets a fresh head, a reward model keeps its own.
Beside the accuracy stand its 95 % Wilson interval, the accuracy by tag and category, and two baselines
(`align.stages.pairs`); `eval.jsonl` has one line per held-out pair, from which all of it can be recomputed.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.recipe import Recipe, RecipeError, batch_plan
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.recipe.stages import RewardSection
from align.runs.seeding import derive, seed_everything
from align.stages import common, pairs
from align.trainers.arguments import training_arguments
from align.trainers.reward import RewardTrainer
from data_formats.records import Comparison

SAMPLES = 16


def run(
    recipe: Recipe, stage: str = "rm", *, init_from: Origin | None = None, out_dir: Path | None = None
) -> dict[str, Any]:
    """Run the stage `pmp` or `rm` and leave its folder behind; returns the summary."""
    return train_reward(
        recipe,
        getattr(recipe, stage),
        init_from or init_origin(recipe, stage),
        out_dir or stage_dir(recipe, stage),
        seed=derive(recipe.seed, stage),
        stage=stage,
    )


def train_reward(
    recipe: Recipe,
    section: RewardSection,
    origin: Origin,
    out_dir: Path,
    seed: int,
    *,
    stage: str = "rm",
    shuffle_labels: bool = False,
) -> dict[str, Any]:
    """Train one reward model into `out_dir`: a stage, or a control arm beside it.

    Args:
        recipe: for the model's settings, data root and batch plan.
        section: data and hyper-parameters; an arm changes it with `section.model_copy(update={...})`.
        origin: what to start from.
        seed: for the head, the order of the pairs and the shuffling of labels.
        stage: names the section in messages.
        shuffle_labels: exchange chosen and rejected in a random half of the training pairs (a control: nothing is to be
            learnt).

    Returns:
        The summary, which is also written to `summary.json`: `accuracy` with `accuracy_low`, `accuracy_high`,
        `correct`, `pairs`; `accuracy_before`; `accuracy_<tag>`; `by_tag`, `by_category`; baselines.
    """
    from align.data.load import train_and_heldout

    began = time.perf_counter()
    model, tokenizer, fresh_head = load(recipe, section, origin, seed, stage=stage)
    common.open_folder(recipe, out_dir)
    train, heldout, reports = train_and_heldout(section, Comparison, recipe)
    if shuffle_labels:
        train = shuffled_labels(train, derive(seed, "labels"))
    rows, train, dropped = encode(tokenizer, train, section)
    heldout_rows, heldout, heldout_dropped = encode(tokenizer, heldout, section)
    read = common.account(stage, section, reports, (rows, dropped), (heldout_rows, heldout_dropped))
    trainer = _trainer(recipe, section, stage, out_dir, seed, model, tokenizer, rows, heldout_rows)
    before = None if fresh_head else held_out(trainer, heldout, heldout_rows).get("accuracy")
    figures = {"accuracy_before": before} | common.train(trainer, stage, ("loss", "accuracy", "margin"))
    if section.center_scores:
        figures |= _center(recipe, section, model, tokenizer, stage)
    figures |= held_out(trainer, heldout, heldout_rows, write_to=out_dir)
    common.save_model(trainer, tokenizer)
    if heldout:
        figures["length_baseline"] = pairs.length_baseline(train, heldout)
        figures["majority_baseline"] = pairs.majority_baseline(train, heldout)
    figures |= {"rows": len(rows), "shuffled_labels": shuffle_labels, "origin": asdict(origin)} | read
    return common.finish(out_dir, figures, began)


def load(recipe: Recipe, section: RewardSection, origin: Origin, seed: int, *, stage: str) -> tuple[Any, Any, bool]:
    """Reward model, tokenizer, and whether the head is fresh."""
    from align.models.load import load_options, load_reward_model
    from align.models.tokenizer import load_tokenizer
    from reward.model import RewardModel

    path, settings = common.origin_path(recipe, origin, stage=stage), recipe.model
    revision = settings.revision if path == settings.path else None
    tokenizer = load_tokenizer(path, trust_remote_code=settings.trust_remote_code, revision=revision)
    seed_everything(derive(seed, "head"))
    model = load_reward_model(path, settings)
    fresh = not RewardModel.is_saved_at(path, **load_options(path, settings))
    if fresh:
        model.set_pooling(section.pooling)
    elif model.pooling != section.pooling:
        sentence = f"{stage}.pooling: is {section.pooling}, but {path} was trained with {model.pooling}; name that"
        raise RecipeError([sentence], recipe.name)
    return model, tokenizer, fresh


def shuffled_labels(comparisons: list[Comparison], seed: int) -> list[Comparison]:
    """The same pairs, chosen and rejected exchanged in a random half of them."""
    from dataclasses import replace

    flips = [index % 2 == 0 for index in range(len(comparisons))]
    random.Random(seed).shuffle(flips)
    return [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if flip else pair
        for pair, flip in zip(comparisons, flips, strict=True)
    ]


def encode(
    tokenizer: Any, comparisons: list[Comparison], section: RewardSection
) -> tuple[list[dict], list[Comparison], dict[str, int]]:
    """Rows, the comparisons they were made from (same order and number), and what was dropped."""
    from align.data.encode import encode_kept_comparisons

    rows, kept, dropped = encode_kept_comparisons(tokenizer, comparisons, section.max_length, section.on_overlong)
    return rows, [comparisons[index] for index in kept], dropped


def _trainer(
    recipe: Recipe,
    section: RewardSection,
    stage: str,
    out_dir: Path,
    seed: int,
    model: Any,
    tokenizer: Any,
    rows: list[dict],
    heldout_rows: list[dict],
) -> RewardTrainer:
    args = training_arguments(
        section,
        batch_plan(recipe.model_copy(update={stage: section}), stage),
        recipe.model,
        out_dir,
        seed=derive(seed, "train"),
        report_to=recipe.report_to,
        evaluate=bool(heldout_rows),
    )
    return RewardTrainer(model, args, train_dataset=rows, eval_dataset=heldout_rows or None, processing_class=tokenizer)


def held_out(
    trainer: RewardTrainer, heldout: list[Comparison], rows: list[dict], write_to: Path | None = None
) -> dict[str, Any]:
    """Accuracy on held-out pairs, whole and by part; empty without pairs.

    `write_to` is a folder: `eval.jsonl` gets one line per pair, `samples.jsonl` the first few of them.
    """
    if not rows:
        return {}
    order = sorted(
        range(len(rows)), key=lambda row: trainer.row_length(rows[row])
    )  # like lengths together: less padding
    scores = trainer.predict([rows[row] for row in order]).predictions[:, :2].tolist()
    by_row = dict(zip(order, scores, strict=True))
    chosen, rejected = ([by_row[row][side] for row in range(len(rows))] for side in (0, 1))
    right = [a > b for a, b in zip(chosen, rejected, strict=True)]
    by_tag = pairs.accuracy_by(right, [pair.tags for pair in heldout])
    by_category = pairs.accuracy_by(right, [[pair.category] if pair.category else [] for pair in heldout])
    if write_to is not None:
        lines = [_line(*line) for line in zip(heldout, chosen, rejected, strict=True)]
        common.write_lines(write_to / "eval.jsonl", lines)
        common.write_lines(write_to / "samples.jsonl", lines[:SAMPLES])
    return {
        **pairs.accuracy(right),
        **{f"accuracy_{tag}": part["accuracy"] for tag, part in by_tag.items()},
        "margin": sum(a - b for a, b in zip(chosen, rejected, strict=True)) / len(right),
        "by_tag": by_tag,
        "by_category": by_category,
    }


def _line(pair: Comparison, chosen: float, rejected: float) -> dict[str, Any]:
    return {
        "category": pair.category,
        "tags": list(pair.tags),
        "source": pair.source,
        "chosen_score": chosen,
        "rejected_score": rejected,
        "prompt": [{"role": message.role, "content": message.content} for message in pair.prompt],
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    }


def _center(recipe: Recipe, section: RewardSection, model: Any, tokenizer: Any, stage: str) -> dict[str, Any]:
    """Shift scores so that reference replies average 0."""
    from align.stages.reference import reference_batches
    from reward.calibration import center, mean_score

    batches, counts = reference_batches(recipe, section, tokenizer, stage)
    before, after = center(model, batches), mean_score(model, batches)
    return {"reference_mean_before": before, "reference_mean": after, "shift": float(model.shift), **counts}
