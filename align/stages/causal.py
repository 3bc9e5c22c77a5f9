"""What base and sft share: fit a causal LM to encoded rows and measure its held-out loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.recipe import Recipe, batch_plan
from align.recipe.lineage import Origin
from align.recipe.stages import SupervisedSection
from align.runs.seeding import derive
from align.stages import common
from align.trainers.arguments import training_arguments
from align.trainers.sft import SFTTrainer


def load(recipe: Recipe, stage: str, origin: Origin, section: SupervisedSection) -> tuple[Any, Any]:
    """Model and tokenizer that the stage starts from."""
    from align.models.load import load_causal_lm
    from align.models.tokenizer import load_tokenizer

    path, model = common.origin_path(recipe, origin, stage=stage), recipe.model
    revision = model.revision if path == model.path else None
    tokenizer = load_tokenizer(path, trust_remote_code=model.trust_remote_code, revision=revision)
    return load_causal_lm(path, model, attention_dropout=section.attention_dropout), tokenizer


def heldout_loss(trainer: SFTTrainer, rows: list[dict]) -> float | None:
    """Mean loss in nats a token; None without rows."""
    return trainer.predict(rows, metric_key_prefix="eval").metrics["eval_loss"] if rows else None


def fit(
    recipe: Recipe,
    stage: str,
    section: SupervisedSection,
    out_dir: Path,
    *,
    model: Any,
    tokenizer: Any,
    rows: list[dict],
    heldout: list[dict],
    measure_before: bool,
) -> tuple[SFTTrainer, dict[str, Any]]:
    """Train, measure and save; returns the trainer and the figures."""
    args = training_arguments(
        section,
        batch_plan(recipe, stage),
        recipe.model,
        out_dir,
        seed=derive(recipe.seed, stage, "train"),
        report_to=recipe.report_to,
        evaluate=bool(heldout),
    )
    trainer = SFTTrainer(model, args, train_dataset=rows, eval_dataset=heldout or None, processing_class=tokenizer)
    before = heldout_loss(trainer, heldout) if measure_before else None
    figures = common.train(trainer, stage)
    after = heldout_loss(trainer, heldout)
    common.save_model(trainer, tokenizer)
    losses = {"heldout_loss": after} | ({"heldout_loss_before": before} if measure_before else {})
    return trainer, {**losses, **figures, "rows": len(rows), "heldout_rows": len(heldout)}
