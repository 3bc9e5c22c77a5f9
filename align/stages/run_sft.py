"""Supervised finetuning on conversations, with samples of what the model says (`align.stages.evaluations`).

The held-out loss is measured before training, at every `eval_steps` and at the end, the replies are sampled at the
latter two. `end_rate` is the share of them, at temperature 1 and top-p 1, that ended with `<|im_end|>` themselves,
`distinct` the share of different texts. With `keep_best` the summary's figures are those of the model that is left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from align.data.encode import Row, encode_demonstrations, encode_kept_demonstrations
from align.data.load import train_and_heldout
from align.evaluation.heldout import LossByCategory, loss_figures
from align.evaluation.samples import fitting_prompts, heldout_prompts
from align.recipe import Recipe
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.recipe.supervised_sections import SFTSection
from align.runs.seeding import derive
from align.stages import common, supervised
from align.stages.best_checkpoint import BestCheckpoint
from align.stages.evaluations import Evaluations, merge
from align.stages.ghost import ghost_demonstrations
from align.stages.selection import chosen
from align.stages.supervised import Record
from align.stages.user_code import own_callbacks, trainer_class
from align.trainers.sft import SFTTrainer
from data_formats import chatml
from data_formats.chat_format import chat_format
from data_formats.react import observations
from data_formats.records import Demonstration


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows, and how many conversations were dropped or changed, by reason."""

    rows: list[Row]
    counts: dict[str, int] = field(default_factory=dict)


def run_sft(
    recipe: Recipe,
    stage: str = "sft",
    *,
    section: SFTSection | None = None,
    init_from: Origin | None = None,
    out_dir: Path | None = None,
) -> dict[str, Any]:
    """Run the stage and leave its folder behind; returns the summary (`heldout_loss`, `end_rate`, `by_category`, …).

    Args:
        section: in place of the recipe's, for another stage that finetunes.
    """
    began = time.perf_counter()
    section = section or getattr(recipe, stage)
    out_dir = out_dir or stage_dir(recipe, stage)
    model, tokenizer = supervised.load(recipe, stage, init_from or init_origin(recipe, stage), section)
    common.open_folder(recipe, out_dir)
    train, heldout, reports = train_and_heldout(section, Demonstration, recipe)
    train, choice = chosen(recipe, stage, section, train, out_dir)
    train, heldout = (as_trained(tokenizer, demos, section) for demos in (train, heldout))
    tell_observations(stage, train, section)
    heldout_rows, categories = encode_heldout(tokenizer, heldout, section)
    supervised.need_heldout(stage, section, heldout_rows.rows, heldout_rows.counts)
    args = supervised.arguments(recipe, stage, section, out_dir, evaluate=bool(heldout_rows.rows))
    rows, ghosts = encode_training(tokenizer, train, section, out_dir, model, args, derive(recipe.seed, stage, "ghost"))
    read = choice | supervised.account(
        stage, section, reports, (rows.rows, rows.counts), (heldout_rows.rows, heldout_rows.counts)
    )
    training = supervised.seen(rows.rows, section, recipe, read)
    trainer = trainer_class(section, stage, SFTTrainer)(
        model,
        args,
        train_dataset=training,
        eval_dataset=heldout_rows.rows or None,
        processing_class=tokenizer,
        compute_metrics=LossByCategory(categories),
        callbacks=own_callbacks(section, stage),
        loss_reduction=section.loss_reduction,
        packing=section.packing,
        max_length=section.max_length,
        group_by_length=section.group_by_length,
        max_z_coef=section.max_z_coef,
        mixture=section.mixture,
    )
    seed = derive(recipe.seed, stage, "replies")
    figures = fit(trainer, stage, recipe, section, out_dir, tokenizer=tokenizer, heldout=heldout, seed=seed)
    counts: dict[str, Any] = {"rows": len(rows.rows), "heldout_rows": len(heldout_rows.rows)}
    if trainer.packing_report is not None:
        counts["packing"] = trainer.packing_report
    summary = common.finish(out_dir, figures | counts | read | ghosts, began)
    BestCheckpoint.remove(out_dir)
    return summary


def as_trained(tokenizer: Any, demos: Sequence[Demonstration], section: SFTSection) -> list[Demonstration]:
    """The conversations with the system turns and thoughts that are trained, for whatever is sampled from them too."""
    system = chat_format(tokenizer).default_system_turn() if section.default_system == "template" else None
    found = []
    for demo in demos:
        turns = chatml.with_system(chatml.with_reasoning(demo.messages), system)
        if section.thinking == "drop":
            turns = tuple(replace(turn, reasoning="") if turn.reasoning else turn for turn in turns)
        found.append(replace(demo, messages=turns) if turns != demo.messages else demo)
    return found


def tell_observations(stage: str, demos: Sequence[Demonstration], section: SFTSection) -> None:
    """Say in how many conversations tools answer inside a reply; warn where these answers would be trained."""
    replies = ([turn.content for turn in demo.messages if turn.role == "assistant" and turn.loss] for demo in demos)
    found = sum(any(map(observations, texts)) for texts in replies)
    if section.mask_observations:
        common.LOG.info("%s: %d conversations have observations inside replies, which get no loss", stage, found)
    elif found:
        common.LOG.warning(
            "%s: %d conversations have observations of tools inside replies, and these are trained as if the model had "
            "to write them: set %s.mask_observations",
            *(stage, found, stage),
        )


def options(section: SFTSection) -> dict[str, Any]:
    """What `encode_demonstrations` is told."""
    return {
        name: getattr(section, name)
        for name in ("max_length", "on_overlong", "mask", "default_system", "thinking", "mask_observations")
    }


def encode(
    tokenizer: Any, demos: Sequence[Demonstration], section: SFTSection, **changes: Any
) -> tuple[list[Row], dict[str, int]]:
    """`encode_demonstrations` with the section's options; `changes` win over them."""
    return encode_demonstrations(tokenizer, demos, **(options(section) | changes))


def encode_heldout(tokenizer: Any, demos: Sequence[Demonstration], section: SFTSection) -> tuple[Encoded, list[str]]:
    """Held-out rows and the category of each."""
    rows, kept, counts = encode_kept_demonstrations(tokenizer, demos, **options(section))
    return Encoded(rows, counts), [demos[index].category for index in kept]


def encode_training(
    tokenizer: Any,
    demos: Sequence[Demonstration],
    section: SFTSection,
    out_dir: Path,
    model: Any,
    args: TrainingArguments,
    seed: int,
) -> tuple[Encoded, dict[str, Any]]:
    """Training rows, those of Ghost Attention after the others, and what the summary says of the latter.

    A ghost conversation that is too long is dropped whatever `on_overlong` says: cut, it would lose the turn that holds
    its instruction.
    """
    if section.ghost_attention is None:
        return Encoded(*encode(tokenizer, demos, section)), {}
    plain, instructed, found = ghost_demonstrations(
        demos, section, out_dir, model=model, tokenizer=tokenizer, device=args.device, seed=seed
    )
    rows, counts = encode(tokenizer, plain, section)
    more, dropped = encode(tokenizer, instructed, section, mask="last_turn_only", on_overlong="drop")
    found["rows"] = len(more)
    return Encoded(rows + more, counts | {f"ghost attention: {why}": n for why, n in dropped.items()}), {"ghost": found}


def fit(
    trainer: SFTTrainer,
    stage: str,
    recipe: Recipe,
    section: SFTSection,
    out_dir: Path,
    *,
    tokenizer: Any,
    heldout: Sequence[Demonstration],
    seed: int,
) -> dict[str, Any]:
    """Train, save the model, evaluate it, and save the best one where that is asked for; returns the figures."""
    record = Record(trainer, tokenizer, stage, recipe, section)
    if not trainer.eval_dataset:
        return {"heldout_loss": None, "heldout_loss_before": None, **record.train()}
    prompts = fitting_prompts(tokenizer, heldout_prompts(heldout, section.eval_num_replies), section.max_length)
    best = BestCheckpoint(trainer, out_dir) if section.keep_best else None
    evaluations = Evaluations(
        trainer,
        tokenizer,
        prompts,
        out_dir,
        max_new_tokens=section.max_completion_length,
        batch_size=section.eval_batch_size,
        seed=seed,
        best=best,
    )
    before = record.once("before", lambda: loss_figures(supervised.heldout_metrics(trainer)))
    if not record.trained:
        evaluations.try_sampling()
    trainer.add_callback(evaluations)
    figures = dict(record.train())
    evaluation = record.once("evaluation", evaluations.final)
    if best is not None:
        figures["last_heldout_loss"] = evaluation["heldout_loss"]
        evaluation = best.restore()
        figures |= {"best_step": evaluation["step"], "best_heldout_loss": evaluation["heldout_loss"]}
        supervised.save_model(trainer, tokenizer)
    return _figures(before, evaluation) | figures


def _figures(before: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """What is known of the saved model, beside its losses before training."""
    earlier = {name: {"heldout_loss_before": part["heldout_loss"]} for name, part in before["by_category"].items()}
    found = {key: value for key, value in evaluation.items() if key != "step"}
    return {
        **found,
        "heldout_loss_before": before["heldout_loss"],
        "by_category": merge(evaluation["by_category"], earlier),
    }
