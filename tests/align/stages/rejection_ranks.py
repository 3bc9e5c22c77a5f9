"""The rejection stage on every rank, run by test_rejection_ranks.py. `broken`: one rank's reward fails."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import PartialState

from align.recipe import load_recipe
from align.stages import candidates, run_rejection
from align.stages.candidates import Sampler
from data_formats.errors import AlignError
from reward.protocol import RewardError


def main(file: Path, broken: bool = False) -> None:
    PartialState(cpu=True)
    together = torch.distributed.is_initialized()
    rank = int(torch.distributed.get_rank()) if together else 0
    recipe, found = load_recipe(file), {}
    candidates.BATCHES_A_PIECE = 1
    if broken:
        judged = Sampler.judged

        def fail(self, prompts, *, greedy=False, **options):
            if rank == 1 and not greedy:
                raise RewardError("no score")
            return judged(self, prompts, greedy=greedy, **options)

        Sampler.judged = fail
        try:
            run_rejection.run_rejection(recipe)
        except AlignError as error:
            found["error"] = str(error)
    else:
        summary = run_rejection.run_rejection(recipe)
        found["rounds"] = [[one["score_best"], one["kept"], one["score_greedy"]] for one in summary["rounds"]]
    Path(recipe.output_dir, f"rank-{rank}.json").write_text(json.dumps(found))
