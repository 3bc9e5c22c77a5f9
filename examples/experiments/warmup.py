"""What warming ppo's critic up on stored replies saves, and what it costs the critic, on runs of the quickstart.

    python examples/experiments/warmup.py RUN [RUN …] [--out FOLDER]

Each RUN is the folder of a quickstart, one a seed, of which the stages up to rm are finished; nothing is written to it.
Its ppo stage is run up to the first iteration in which the policy learns, without held-out prompts and pretraining
documents: with replies that are sampled, and with those that runs of another seed stored, which have the same policy
and reward.

- `same tokens`: what such a run leaves.
- `text alone`: the same file without token ids, so that each reply is encoded from its text.
- `top-p 1`: replies drawn from the whole vocabulary, as a rejection stage draws them, where ppo draws with 0.9.

Seconds are those of the iterations of the critic alone. The value loss is that of the last of them, on what it learns
from; the explained variance is that of the critic on the first replies after them, which are sampled in every row.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from align.recipe import Recipe, load_recipe
from align.recipe.ppo_section import PPOSection
from align.runs.launch import guarded, prepare
from align.runtime.files import write_json_lines
from align.stages.warmup import files_of

OTHER_SEED = 1000  # added to the seed of those that store
COLUMNS = {"seconds/total": "seconds", "seconds/rollout": "of these sampling", "value/loss": "value loss, last"}
AFTER = {"value/explained_variance": "explained variance after"}


def main(argv: list[str] | None = None) -> int:
    """Run all rows on every run, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/warmup"))
    args = parser.parse_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        recipes = [load_recipe(run / "rm" / "recipe.yaml", [f"output_dir={run}"]) for run in args.runs]
        print(table([outcomes(recipe, args.out / f"seed{recipe.seed}") for recipe in recipes]))
    return ending.code


def outcomes(recipe: Recipe, out: Path) -> dict[str, dict[str, float]]:
    """The figures of every row of one run; what is finished is not run again."""
    other = recipe.model_copy(update={"seed": recipe.seed + OTHER_SEED})
    stored, wide = out / "stored", out / "stored at top-p 1"
    run(other, stored)
    run(other, wide, top_p=1.0)
    if not (out / "text").is_dir():
        for file in files_of(stored):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            write_json_lines(out / "text" / file.name, map(without_ids, rows))
    places = {"sampled": None, "same tokens": stored, "text alone": out / "text", "top-p 1": wide}
    return {name: figures(run(recipe, out / name, place)) for name, place in places.items()}


def without_ids(row: dict[str, Any]) -> dict[str, Any]:
    """A row of stored replies as a file that has their texts alone."""
    return row | {"replies": [{k: v for k, v in reply.items() if k != "token_ids"} for reply in row["replies"]]}


def run(recipe: Recipe, folder: Path, place: Path | None = None, top_p: float | None = None) -> Path:
    """The ppo stage up to the first iteration in which the policy learns; made where it is not there yet."""
    from align.stages.run_ppo import run_ppo

    if not (folder / "summary.json").is_file():
        rollout = recipe.ppo.rollout.model_dump(mode="json") | ({} if top_p is None else {"top_p": top_p})
        changes = {"num_iterations": recipe.ppo.warmup_iterations + 1, "save_steps": None, "rollout": rollout}
        changes |= {"critic_warmup_from": None if place is None else str(place)}
        data = recipe.ppo.model_dump(mode="json") | {"eval_data": [], "ptx_coef": 0.0, "ptx_data": []} | changes
        run_ppo(recipe, section=PPOSection.model_validate_json(json.dumps(data)), out_dir=folder)
    return folder


def figures(folder: Path) -> dict[str, float]:
    """Those of a row of the table."""
    *warm, after = (json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = {name: sum(line[name] for line in warm) for name in COLUMNS if name.startswith("seconds")}
    return found | {"value/loss": warm[-1]["value/loss"]} | {name: after[name] for name in AFTER}


def table(found: list[dict[str, dict[str, float]]]) -> str:
    """A line a way; means over the runs, with the least and the most in brackets."""
    columns = COLUMNS | AFTER
    lines = [f"| replies of the warm-up | {' | '.join(columns.values())} |", "|---|" + "---:|" * len(columns)]
    for name in found[0]:
        cells = (spread([one[name][key] for one in found]) for key in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """The mean, and in brackets the least and the most where there are several."""
    ends = f" [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{ends}"


if __name__ == "__main__":
    sys.exit(main())
