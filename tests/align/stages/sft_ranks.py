"""The sft stage on every rank; run by test_sft_ranks.py. `broken`: the first rank's engine fails."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import PartialState

from align.data.load import load_records
from align.recipe import load_recipe
from align.stages import evaluations, run_sft, supervised
from align.stages.ghost import ghost_demonstrations
from data_formats.errors import AlignError
from data_formats.records import Demonstration
from rollouts.errors import RolloutError


def main(file: Path, broken: bool = False) -> None:
    PartialState(cpu=True)
    rank = int(torch.distributed.get_rank()) if torch.distributed.is_initialized() else 0
    recipe = load_recipe(file)
    out = Path(recipe.output_dir)
    model, tokenizer = supervised.load(recipe, "sft", run_sft.init_origin(recipe, "sft"), recipe.sft)
    demos, _ = load_records(recipe.sft.data, Demonstration, recipe)
    options = {"model": model, "tokenizer": tokenizer, "device": torch.device("cpu"), "seed": 5}
    plain, instructed, counts = ghost_demonstrations(demos, recipe.sft, out, **options)
    said = [[message.content for message in demo.messages] for demo in instructed]
    found = {"ghost": [len(plain), said, counts]}
    recipe = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"ghost_attention": None})})
    if broken:

        def fail(*args, **kwargs):
            raise RolloutError("no room")

        evaluations.make_engine = fail
        try:
            run_sft.run_sft(recipe)
        except AlignError as error:
            found["error"] = str(error)
    else:
        choose = run_sft.chosen

        def noted(*args):
            rows, told = choose(*args)
            found["rows"] = [row.messages[-1].content for row in rows]
            return rows, told

        run_sft.chosen = noted
        summary = run_sft.run_sft(recipe)
        found["best"] = [summary["best_step"], summary["best_heldout_loss"], summary["last_heldout_loss"]]
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
