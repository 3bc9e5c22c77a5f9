"""What base and sft share: the causal LM they start from, the trainer's arguments, and the held-out loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from align.recipe import Recipe, batch_plan
from align.recipe.lineage import Origin
from align.recipe.registry import STAGES
from align.recipe.supervised_sections import SupervisedSection
from align.runs.seeding import derive
from align.stages import common
from align.trainers.arguments import training_arguments
from align.trainers.sft import SFTTrainer


def load(recipe: Recipe, stage: str, origin: Origin, section: SupervisedSection) -> tuple[Any, Any]:
    """Model, with its adapter where the stage trains one, and tokenizer that the stage starts from."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import load_tokenizer

    path, model = common.origin_path(recipe, origin, stage=stage), recipe.model
    if not STAGES[stage].adapted:
        model = model.without_adapter()
    revision = model.revision if path == model.path else None
    own_template = getattr(section, "default_system", "none") == "template"
    tokenizer = load_tokenizer(
        path, trust_remote_code=model.trust_remote_code, revision=revision, own_template=own_template
    )
    seed = derive(recipe.seed, stage, "adapter")
    options = {"tokenizer": tokenizer, "attention_dropout": section.attention_dropout, "seed": seed}
    return load_causal_lm(path, model, **options), tokenizer


def arguments(
    recipe: Recipe, stage: str, section: SupervisedSection, out_dir: Path, *, evaluate: bool
) -> TrainingArguments:
    """The trainer's arguments; making them also finds this rank's device.

    Args:
        evaluate: whether there are held-out rows for `eval_steps`.
    """
    return training_arguments(
        section,
        batch_plan(recipe, stage),
        recipe.model,
        out_dir,
        seed=derive(recipe.seed, stage, "train"),
        report_to=recipe.report_to,
        evaluate=evaluate,
    )


def heldout_metrics(trainer: SFTTrainer) -> dict[str, Any]:
    """Metrics of the trainer's held-out rows, `eval_loss` in nats a token among them; empty without rows."""
    rows = trainer.eval_dataset
    with common.evaluating(trainer):
        return trainer.predict(rows, metric_key_prefix="eval").metrics if rows else {}
