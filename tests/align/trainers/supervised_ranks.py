"""One optimizer step, evaluations and a checkpoint on every rank; run by test_supervised_ranks.py. `moved`: a few
steps, which may go on from those of another number of ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from align.functional.reductions import REDUCTIONS
from align.recipe.mixture_section import MixtureSection
from align.runs import checkpoint
from align.trainers import sharding
from tests.align.trainers.ppo_case import exact
from tests.align.trainers.supervised_case import (
    Gradients,
    causal_lm,
    chat_rows,
    group_options,
    group_rows,
    make_trainer,
    pair_rows,
    preference_rows,
    reward_model,
    sft_rows,
)


def main(folder: Path, ranks: int) -> None:
    results = {}
    packed = {"packing": True, "max_length": 40}
    single = [row | {"pairs": row["pairs"][:1]} for row in group_rows(7, seed=5)]
    parted = [row | {"part": "ab"[at % 2]} for at, row in enumerate(sft_rows(16))]
    cases = (
        ("sft", sft_rows(8), sft_rows(7, seed=5), None),
        ("reward", pair_rows(8), pair_rows(7, seed=5), None),
        *((f"groups {share}", group_rows(8), single, {"options": group_options(share)}) for share in (True, False)),
        *((f"sft {name}", chat_rows(8), chat_rows(7, seed=5), {"loss_reduction": name}) for name in REDUCTIONS),
        ("dpo", preference_rows(8), preference_rows(7, seed=5), None),
        ("sft mixed", parted, sft_rows(7, seed=5), {"mixture": MixtureSection(weights={"a": 1.0, "b": 3.0})}),
        ("sft packed", chat_rows(30), chat_rows(7, seed=5), packed | {"loss_reduction": "prefix_mean"}),
    )
    for case, rows, heldout, options in cases:
        kind, given = case.split()[0], {"micro": 2, "ranks": ranks, "trainer": options}
        trainer = make_trainer(kind, folder / case, rows, heldout=heldout, save_steps=1, **given)
        if kind == "dpo":  # at the reference the rewards are rounding alone
            for part in trainer.model.parameters():
                part.data *= 1.1
        gradients = Gradients()
        trainer.add_callback(gradients)
        metrics = trainer.evaluate()
        trainer.train()
        logged = next(line for line in trainer.state.log_history if "loss" in line)
        clean = {name.removeprefix("module."): value for name, value in gradients.steps[0].items()}
        results[case] = {
            "gradients": clean,
            "loss": logged["loss"],
            "accuracy": logged.get("accuracy", 0.0),
            "eval_loss": metrics["eval_loss"],
            "eval_items": metrics.get("eval_tokens", metrics.get("eval_pairs")),
            "predictions": torch.as_tensor(trainer.predict(trainer.eval_dataset).predictions),
        }
        if case == kind or "mixed" in case:
            again = make_trainer(kind, folder / f"{case}-again", rows, max_steps=2, **given)
            again.train(resume_from_checkpoint=str(checkpoint.latest(folder / case / "checkpoints")))
            assert again.state.global_step == 2
        if trainer.is_world_process_zero():
            torch.save(results, folder / "results.pt")


def moved(folder: Path, ranks: int, start: str | None = None) -> None:
    """Four steps of every kind in float64, from the checkpoint `start` there on; two are logged together."""
    learnt = {}
    for kind, rows in (("sft", sft_rows), ("reward", pair_rows), ("dpo", preference_rows)):
        model = exact(reward_model() if kind == "reward" else causal_lm())
        if kind == "reward":
            model.head.weight = torch.nn.Parameter(model.head.weight.detach().double())
        options = {
            "heldout": rows(6, seed=5),
            "max_steps": 4,
            "save_steps": 1,
            "save_total_limit": 4,
            "logging_steps": 2,
        }
        trainer = make_trainer(kind, folder / kind, rows(32), micro=2, ranks=ranks, model=model, **options)
        trainer.evaluate()
        trainer.train(resume_from_checkpoint=start and start.format(kind))
        last = [line["loss"] for line in trainer.state.log_history if "loss" in line][-1]
        weights = {name: sharding.full(part.detach()) for name, part in trainer.model.named_parameters()}
        weights = {name.removeprefix("module."): part for name, part in weights.items()}
        learnt[kind] = {"weights": weights, "loss": last, "eval_loss": trainer.evaluate()["eval_loss"]}
    if trainer.is_world_process_zero():
        torch.save(learnt, folder / "learnt.pt")
