"""Direct preference optimization of the policy on comparisons, measured on held-out ones.

As in Llama 3 (4.1.4) where its section says so: the newest comparisons alone, of the stronger grades, the chosen
reply's negative log-likelihood beside DPO's loss, and no loss on the tokens that end a reply.

The implicit reward of a reply is beta times its log-probability over the starting model's. How often it is higher for
the chosen one stands with its interval where a reward model's accuracy would (`align.evaluation.preference`);
`eval.jsonl` has one line per held-out pair, `samples.jsonl` what the model says to some of their prompts.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from align.data.load import train_and_heldout
from align.data.pairs import strong_enough
from align.data.preferences import encode_preferences, newest_round
from align.evaluation import preference
from align.evaluation.samples import fitting_prompts
from align.recipe import Recipe, batch_plan
from align.recipe.dpo_section import DPOSection
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.runs.seeding import derive
from align.runtime.packages import require_package
from align.stages import common, supervised
from align.stages.best_checkpoint import BestCheckpoint
from align.stages.evaluations import Evaluations
from align.stages.selection import chosen
from align.stages.supervised import Record
from align.stages.user_code import own_callbacks, trainer_class
from align.trainers.arguments import training_arguments
from data_formats.records import Comparison, Prompt

Pairs = tuple[list[Any], list[Comparison], dict[str, int]]  # rows, what they were made from, and what was dropped


def run_dpo(
    recipe: Recipe,
    stage: str = "dpo",
    *,
    section: DPOSection | None = None,
    init_from: Origin | None = None,
    out_dir: Path | None = None,
) -> dict[str, Any]:
    """Run the stage and leave its folder behind; returns the summary (`accuracy` with its interval, `margin`,
    `heldout_pair_loss` in nats a pair, `end_rate`, …).

    Args:
        section: in place of the recipe's.
        init_from: in place of the stage before; also what the policy is held against.

    Raises:
        MissingPackageError: trl is not installed.
    """
    require_package(f"stage '{stage}'", "trl")
    from trl import DPOConfig

    from align.trainers.dpo import DPOTrainer, dpo_options

    began = time.perf_counter()
    section = section or getattr(recipe, stage)
    recipe = recipe.model_copy(update={stage: section})
    out_dir, origin = out_dir or stage_dir(recipe, stage), init_from or init_origin(recipe, stage)
    model, tokenizer = supervised.load(recipe, stage, origin, section)
    common.open_folder(recipe, out_dir)
    train, heldout, reports = train_and_heldout(section, Comparison, recipe)
    train, choice = chosen(recipe, stage, section, train, out_dir)
    rows, train, dropped = training_pairs(tokenizer, train, section)
    heldout_rows, heldout, heldout_dropped = encode(tokenizer, heldout, section)
    read = choice | supervised.account(stage, section, reports, (rows, dropped), (heldout_rows, heldout_dropped))
    supervised.need_heldout(stage, section, heldout_rows, heldout_dropped)
    options = dpo_options(beta=section.beta, nll_coef=section.nll_coef, batch_size=section.eval_batch_size)
    options |= {"made": DPOConfig, "seed": derive(recipe.seed, stage, "train"), "evaluate": bool(heldout_rows)}
    args = training_arguments(section, batch_plan(recipe, stage), recipe.model, out_dir, **options)
    trainer = trainer_class(section, stage, DPOTrainer)(
        model,
        args,
        train_dataset=supervised.seen(rows, section, recipe, read),
        eval_dataset=heldout_rows or None,
        processing_class=tokenizer,
        callbacks=own_callbacks(section, stage),
        mixture=section.mixture,
    )
    record = Record(trainer, tokenizer, stage, recipe, section)
    figures = _fit(record, section, heldout, derive(recipe.seed, stage, "replies")) | _measured(record, heldout, train)
    figures |= {"rows": len(rows), "heldout_rows": len(heldout_rows), "origin": asdict(origin)} | read
    summary = common.finish(out_dir, figures, began)
    BestCheckpoint.remove(out_dir)
    return summary


def encode(tokenizer: Any, comparisons: list[Comparison], section: DPOSection) -> Pairs:
    """Rows, the comparisons they were made from (same order and number), and what was dropped, by reason."""
    options = {"mask_formatting": section.mask_formatting}
    rows, kept, dropped = encode_preferences(tokenizer, comparisons, section.max_length, section.on_overlong, **options)
    return rows, [comparisons[index] for index in kept], dropped


def training_pairs(tokenizer: Any, comparisons: list[Comparison], section: DPOSection) -> Pairs:
    """`encode` of those that the section trains on: of the newest round, of a grade.

    Raises:
        DataError: the newest round is asked for, and no comparison says its round.
    """
    dropped: Counter[str] = Counter()
    if section.newest_round:
        comparisons, earlier = newest_round(comparisons)
        dropped += Counter(earlier)
    comparisons, weak = strong_enough(comparisons, section.min_grade)
    rows, kept, more = encode(tokenizer, comparisons, section)
    return rows, kept, dict(dropped + Counter(weak) + Counter(more))


def _fit(record: Record, section: DPOSection, heldout: list[Comparison], seed: int) -> dict[str, Any]:
    """Train, save the model, sample from it, and leave the best one where that is asked for; returns the figures."""
    trainer, tokenizer = record.trainer, record.tokenizer
    shown = ("loss", "accuracy", "margin")
    if not trainer.eval_dataset:
        return {"heldout_pair_loss": None, **record.train(*shown)}
    best = BestCheckpoint(trainer, record.folder) if section.keep_best else None
    evaluations = Evaluations(
        trainer,
        tokenizer,
        fitting_prompts(tokenizer, prompts_of(heldout, section.eval_num_replies), section.max_length),
        record.folder,
        max_new_tokens=section.max_completion_length,
        batch_size=section.eval_batch_size,
        seed=seed,
        best=best,
    )
    if not record.trained:
        supervised.try_evaluation(trainer)
        evaluations.try_sampling()
    trainer.add_callback(evaluations)
    figures = dict(record.train(*shown))
    found = record.once("evaluation", evaluations.final)
    if best is not None:
        figures["last_heldout_loss"] = found["heldout_loss"]
        found = best.restore()
        figures |= {"best_step": found["step"], "best_heldout_loss": found["heldout_loss"]}
        supervised.save_model(trainer, tokenizer)
    of_replies = {name: found[name] for name in ("replies", "end_rate", "distinct", "reply_tokens") if name in found}
    return {"heldout_pair_loss": found["heldout_loss"]} | of_replies | figures


def prompts_of(heldout: list[Comparison], size: int) -> list[Prompt]:
    """Up to `size` different prompts, the chosen reply as the reference."""
    found: dict[Any, Prompt] = {}
    for pair in heldout:
        if len(found) < size:
            found.setdefault(pair.prompt, Prompt(pair.prompt, pair.category, reference=pair.chosen, tools=pair.tools))
    return list(found.values())


def _measured(record: Record, heldout: list[Comparison], train: list[Comparison]) -> dict[str, Any]:
    """`align.evaluation.preference.evaluate` of the implicit rewards on held-out pairs, and its files; empty without
    pairs."""
    trainer = record.trainer
    if not trainer.eval_dataset:
        return {}
    with supervised.evaluating(trainer):
        chosen, rejected = trainer.predict(trainer.eval_dataset).predictions[:, :2].T.tolist()
    for name, lines in preference.lines(heldout, chosen, rejected).items():
        common.write_lines(record.folder / name, lines)
    found = preference.evaluate(heldout, chosen, rejected, train=train)
    return found | {"majority_baseline": preference.majority_baseline(train, heldout)}
