"""From a section of the recipe to transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from align.recipe.batch import BatchPlan
from align.recipe.fields import OptimSection
from align.recipe.model_section import ModelSection
from align.recipe.supervised_sections import SupervisedSection
from align.runtime.packages import require_package


def training_arguments(
    section: SupervisedSection,
    plan: BatchPlan,
    model: ModelSection,
    output_dir: str | Path,
    *,
    seed: int,
    evaluate: bool = True,
    made: type[TrainingArguments] = TrainingArguments,
    **own: Any,
) -> TrainingArguments:
    """TrainingArguments of one stage on this machine: bars, memory metrics and reporting off, no CPU worker processes.

    Args:
        section: optimizer, schedule, logging and saving.
        plan: how a batch is cut over ranks and micro-batches (`align.recipe.batch_plan`).
        model: for mixed precision (gradient checkpointing is switched on where the model is loaded).
        output_dir: the stage's folder.
        seed: for the order of rows and dropout.
        evaluate: whether there are held-out rows for `eval_steps`.
        made: their class, where a trainer has arguments of its own, `own`.
    """
    args = made(
        output_dir=str(output_dir),
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        per_device_eval_batch_size=section.eval_batch_size,
        num_train_epochs=section.num_train_epochs,
        max_steps=section.max_steps if section.max_steps is not None else -1,
        **optimizer_options(section),
        logging_steps=section.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluate and section.eval_steps else "no",
        eval_steps=section.eval_steps,
        save_strategy="steps" if section.save_steps else "no",
        save_steps=section.save_steps or 500,
        save_total_limit=section.save_total_limit,
        seed=seed,
        data_seed=seed,
        bf16=model.mixed_precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        report_to="none",  # `align.runs.trackers` reports
        restore_callback_states_from_checkpoint=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cache=True,  # goes into the saved config; our forwards switch the cache off themselves
        dataloader_num_workers=0,
        **own,
    )
    if args.n_gpu > 1:
        args._n_gpu = (
            1  # several GPUs in one process would mean nn.DataParallel; several ranks are started by a launcher
        )
    return args


def optimizer_options(section: OptimSection) -> dict[str, Any]:
    """Optimizer and schedule; `cosine_with_min_lr` ends at a tenth of the peak, as pretraining of Qwen did.

    Raises:
        MissingPackageError: an optimizer of bitsandbytes, which is not installed.
    """
    named = {}
    if section.optimizer != "adamw":  # without a word, Trainer takes torch's, fused where it can
        require_package(f"optimizer={section.optimizer}", "bitsandbytes")
        named = {"optim": "paged_adamw_32bit" if section.optimizer == "paged_adamw" else section.optimizer}
    names = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm")
    options = {name: getattr(section, name) for name in (*names, "adam_beta1", "adam_beta2", "adam_epsilon")}
    schedule = {"min_lr_rate": 0.1} if section.lr_scheduler_type == "cosine_with_min_lr" else {}
    return options | named | {"lr_scheduler_kwargs": schedule}
