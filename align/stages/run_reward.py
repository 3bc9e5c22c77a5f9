"""PMP and RM: train a reward model on comparisons and measure it on held-out ones.

Qwen report 3.2.1: preference-model pretraining on many coarse comparisons starting from the base model, then finetuning
on fewer clean ones; one epoch. A causal LM as origin gets a fresh head, a reward model keeps its own.
Beside the accuracy stand its 95 % Wilson interval, the accuracy by tag and category, and two baselines
(`align.evaluation`); `eval.jsonl` has one line per held-out pair, from which all of it can be recomputed.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from align.evaluation import preference
from align.recipe import Recipe, RecipeError, batch_plan
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.recipe.supervised_sections import RewardSection
from align.runs.seeding import derive, seed_everything
from align.stages import common, preferences, supervised
from align.stages.best_checkpoint import BestCheckpoint, Offers
from align.stages.preferences import reference_batches
from align.stages.selection import chosen
from align.stages.supervised import Record
from align.trainers.arguments import training_arguments
from align.trainers.reward import RewardTrainer
from data_formats.records import Comparison, Scored

SAMPLES = 16


def run_reward(
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
    """Train one reward model into `out_dir`: a stage, or a control beside it.

    Args:
        recipe: for the model's settings, data root and batch plan.
        section: data and hyper-parameters; a control changes it with `section.model_copy(update={...})`.
        origin: what to start from.
        seed: for the head, the order of the pairs and the shuffling of labels.
        stage: names the section in messages.
        shuffle_labels: exchange chosen and rejected in a random half of the training pairs (a control: nothing is to be
            learnt).

    Returns:
        The summary, which is also written to `summary.json`: `accuracy` with `accuracy_low`, `accuracy_high`,
        `correct`, `pairs`; `accuracy_before`; what `align.evaluation.preference.evaluate` tells; baselines.
    """
    from align.data.load import train_and_heldout

    began = time.perf_counter()
    model, tokenizer, fresh_head = load(recipe, section, origin, seed, stage=stage)
    common.open_folder(recipe, out_dir)
    ranked = section.rankings == "prompts"
    train, heldout, reports = train_and_heldout(section, Comparison, recipe, ranked=ranked)
    train, choice = chosen(recipe, stage, section, train, out_dir)
    if shuffle_labels:
        train = shuffled_labels(train, derive(seed, "labels"))
    rows, train, dropped = preferences.encode_training(tokenizer, train, section, derive(seed, "tags"))
    heldout_rows, heldout, heldout_dropped = preferences.encode(tokenizer, heldout, section)
    read = choice | supervised.account(stage, section, reports, (rows, dropped), (heldout_rows, heldout_dropped))
    path = common.origin_path(recipe, origin, stage=stage)
    layer = preferences.output_layer(recipe, section, path, fresh_head=fresh_head, stage=stage)
    supervised.need_heldout(stage, section, heldout_rows, heldout_dropped)
    args = _arguments(recipe, section, stage, out_dir, seed, evaluate=bool(heldout_rows))
    reference = reference_batches(recipe, section, tokenizer, stage) if section.center_scores else None  # fails early
    training = supervised.seen(rows, section, recipe, read)
    trainer = preferences.make_trainer(section, stage, args, model, tokenizer, training, heldout_rows, layer)
    record = Record(trainer, tokenizer, stage, recipe, section)
    figures = record.once("before", lambda: _before(trainer, heldout, heldout_rows, train, fresh_head))
    figures = figures | _train(record, keep_best=section.keep_best)
    if reference is not None:
        figures |= _centered(record, model, *reference, unit_variance=section.unit_variance)
    figures |= held_out(trainer, heldout, heldout_rows, train, write_to=out_dir)
    if section.binarise and heldout:
        figures["accuracy_binarised"] = preferences.binarised_accuracy(trainer, tokenizer, heldout, section)
    if heldout:
        figures["majority_baseline"] = preference.majority_baseline(train, heldout)
    figures |= {"rows": len(rows), "shuffled_labels": shuffle_labels, "origin": asdict(origin)} | read
    summary = common.finish(out_dir, figures, began)
    BestCheckpoint.remove(out_dir)
    return summary


def load(recipe: Recipe, section: RewardSection, origin: Origin, seed: int, *, stage: str) -> tuple[Any, Any, bool]:
    """Reward model, tokenizer, and whether the head is fresh."""
    from align.models.load import load_options, load_reward_model
    from align.models.tokenizer import recipe_tokenizer
    from reward.model import RewardModel

    path, settings = common.origin_path(recipe, origin, stage=stage), recipe.model
    tokenizer = recipe_tokenizer(path, settings)
    seed_everything(derive(seed, "head"))
    model = load_reward_model(path, settings, tokenizer=tokenizer, seed=derive(seed, "adapter"))
    fresh = not RewardModel.is_saved_at(path, **load_options(path, settings))
    if fresh:
        model.set_pooling(section.pooling)
    elif model.pooling != section.pooling:
        sentence = f"{stage}.pooling: is {section.pooling}, but {path} was trained with {model.pooling}; name that"
        raise RecipeError([sentence], recipe.name)
    return model, tokenizer, fresh


def _flipped(record: Comparison | Scored) -> Comparison | Scored:
    if isinstance(record, Comparison):
        return record.swapped()
    turned = (replace(reply, score=None if reply.score is None else -reply.score) for reply in record.replies)
    return replace(record, replies=tuple(turned))


def shuffled_labels(comparisons: list[Comparison | Scored], seed: int) -> list[Comparison | Scored]:
    """The same pairs, chosen and rejected exchanged (a ranking turned round) in a random half of them."""
    flips = [index % 2 == 0 for index in range(len(comparisons))]
    random.Random(seed).shuffle(flips)
    return [_flipped(pair) if flip else pair for pair, flip in zip(comparisons, flips, strict=True)]


def _arguments(recipe: Recipe, section: RewardSection, stage: str, out_dir: Path, seed: int, *, evaluate: bool) -> Any:
    plan = batch_plan(recipe.model_copy(update={stage: section}), stage)
    return training_arguments(section, plan, recipe.model, out_dir, seed=derive(seed, "train"), evaluate=evaluate)


def held_out(
    trainer: RewardTrainer,
    heldout: list[Comparison],
    rows: list[dict],
    train: list[Comparison],
    write_to: Path | None = None,
) -> dict[str, Any]:
    """`align.evaluation.preference.evaluate` of held-out pairs; empty without pairs.

    `train` are the training pairs, for the rule of length. `write_to` is a folder: `eval.jsonl` gets one line per pair,
    `most_wrong.jsonl` those that are furthest from right, `samples.jsonl` the first few.
    """
    if not rows:
        return {}
    chosen, rejected = preferences.side_scores(trainer, rows)
    if write_to is not None:
        kept = preference.lines(heldout, chosen, rejected)
        for name, lines in (kept | {"samples.jsonl": kept["eval.jsonl"][:SAMPLES]}).items():
            common.write_lines(write_to / name, lines)
    return preference.evaluate(heldout, chosen, rejected, train=train)


def _before(trainer: RewardTrainer, heldout: list, rows: list, train: list, fresh_head: bool) -> dict[str, Any]:
    """The accuracy before training; of a head that says nothing yet none, but a batch is tried."""
    if fresh_head:
        supervised.try_evaluation(trainer)
        return {"accuracy_before": None}
    return {"accuracy_before": held_out(trainer, heldout, rows, train).get("accuracy")}


def _train(record: Record, *, keep_best: bool) -> dict[str, Any]:
    """Train, and leave the best model in place of the last one where that is asked for."""
    best = BestCheckpoint(record.trainer, record.folder) if keep_best else None
    if best is not None:
        record.trainer.add_callback(Offers(best))
    figures = record.train("loss", "accuracy", "margin")
    return figures if best is None else figures | _put_best(record, best)


def _put_best(record: Record, best: BestCheckpoint) -> dict[str, Any]:
    """Put the best model in the last one's place, which is offered first."""
    trainer = record.trainer

    def offer() -> dict[str, Any]:
        loss = supervised.heldout_metrics(trainer)["eval_loss"]
        best.offer({"step": trainer.state.global_step, "heldout_loss": loss})
        return {"heldout_loss": loss}

    last = record.once("evaluation", offer)
    found = best.restore()
    supervised.save_model(trainer, record.tokenizer)
    figures = {"best_step": found["step"], "best_heldout_loss": found["heldout_loss"]}
    return figures | {"last_heldout_loss": last["heldout_loss"]}


def _centered(
    record: Record, model: Any, batches: list[Any], counts: dict[str, int], *, unit_variance: bool
) -> dict[str, Any]:
    """`_center`, and save the model again."""
    with supervised.evaluating(record.trainer):
        found = record.once("center", lambda: _center(model, batches, counts, unit_variance=unit_variance))
    model.shift.fill_(found["shift"])  # of a run that was left after it
    model.scale.fill_(found["scale"])
    supervised.save_model(record.trainer, record.tokenizer)
    return found


def _center(model: Any, batches: list[Any], counts: dict[str, int], *, unit_variance: bool) -> dict[str, Any]:
    """Shift scores so that reference replies average 0, and, where asked, scale them to unit variance."""
    from reward.calibration import center, mean_score

    before, after = center(model, batches, unit_variance=unit_variance), mean_score(model, batches)
    zero = {"reference_mean_before": before, "reference_mean": after, "shift": float(model.shift)}
    return zero | {"scale": float(model.scale)} | counts
