"""Does it matter when good data comes? A mixture annealed, reversed and even, with the same rows drawn of each part.

    python examples/experiments/mixture.py OUT [--seeds 3] [--steps 200]

Data of the embedded world: demonstrations of mixed quality, and an eighth as many of true and polite ones. A small
model is pretrained on the world's documents, then finetuned in four ways that differ in nothing but when the good data
comes; of 32 rows a step, and over all of them a good one in eight:

- throughout: one in eight in every step
- last: none, then one in two in the last quarter of the steps (Llama 3, 2407.21783, 3.1.3 and 3.4.3, anneals likewise)
- first: one in two in the first quarter, then none
- last, linear: none, then ever more in the last half, which comes to about as many rows

The learning rate falls to 0 linearly in all four. Measured are held-out losses, in nats a token, on good and on mixed
demonstrations of questions that nothing was trained on. What OUT holds already is
not made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from align.recipe import Recipe
from align.runs.launch import prepare
from align.runtime import files
from align.runtime.table import table
from align.runtime.terminal import Parser, say
from align.stages.common import read_summary
from align.stages.run_base import run_base
from align.stages.run_sft import run_sft
from align.tinyworld import sets
from align.tinyworld.world import World
from data_formats.records import Demonstration, Document

MIXED, GOOD = "mixed.jsonl", "good.jsonl"
MODEL = {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}
MODEL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


def weights(mixed: float, good: float) -> dict[str, float]:
    return {MIXED: mixed, GOOD: good}


def phase(start: float, change: str, mixed: float, good: float) -> dict[str, Any]:
    return {"start": start, "change": change, "weights": weights(mixed, good)}


ARMS = {
    "throughout": {"weights": weights(7, 1)},
    "last": {"weights": weights(1, 0), "anneal": [phase(0.75, "at_once", 1, 1)]},
    "first": {"weights": weights(1, 1), "anneal": [phase(0.25, "at_once", 1, 0)]},
    "last, linear": {"weights": weights(1, 0), "anneal": [phase(0.5, "linear", 1, 1)]},
}


def write_world(folder: Path, seed: int) -> None:
    """Documents, both kinds of demonstrations, and held-out ones whose category is their kind."""
    world = World(seed)
    _write(folder / "documents.jsonl", sets.documents(world, 6000))
    for name, good, size in ((MIXED, False, 4000), (GOOD, True, 500)):
        _write(folder / name, sets.demonstrations(world, size, good=good))
        _write(folder / f"heldout_{name}", sets.demonstrations(world, 300, part="heldout", good=good))


def _write(path: Path, records: list[Demonstration] | list[Document]) -> None:
    with files.atomic_file(path) as file:
        for one in records:
            row: dict[str, Any] = {"text": one.text} if isinstance(one, Document) else {}
            if isinstance(one, Demonstration):
                row["messages"] = [{"role": turn.role, "content": turn.content} for turn in one.messages]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def recipe(folder: Path, seed: int, steps: int, arm: str) -> Recipe:
    """A recipe of documents, then of one arm."""
    common = {"batch_size": 32, "micro_batch_size": 32, "weight_decay": 0.1}
    base = common | {"data": [{"path": "documents.jsonl"}], "holdout": 0.02, "max_length": 64, "max_steps": 2 * steps}
    base |= {"learning_rate": 4e-3, "lr_scheduler_type": "cosine", "warmup_steps": 20}
    heldout = [{"path": f"heldout_{name}", "category": name.partition(".")[0]} for name in (MIXED, GOOD)]
    sft = common | {"data": [{"path": name} for name in (MIXED, GOOD)], "eval_data": heldout, "max_length": 128}
    sft |= {"learning_rate": 2e-3, "lr_scheduler_type": "linear", "max_steps": steps, "warmup_steps": 10}
    sft |= {
        "mixture": ARMS[arm],
        "eval_num_replies": 8,
        "max_completion_length": 32,
        "init_from": str(folder / "base/model"),
    }
    told = {"name": f"mixture, {arm}", "output_dir": str(folder), "data_root": str(folder), "seed": seed}
    return Recipe.model_validate_json(json.dumps(told | {"model": {"architecture": MODEL}, "base": base, "sft": sft}))


def run_seed(folder: Path, seed: int, steps: int) -> dict[str, dict[str, Any]]:
    """The summary of every arm."""
    folder.mkdir(parents=True, exist_ok=True)
    if read_summary(folder / "base") is None:
        write_world(folder, seed)
        run_base(recipe(folder, seed, steps, "throughout"), out_dir=folder / "base")
    found = {}
    for arm in ARMS:
        out = folder / arm.replace(", ", "_")
        found[arm] = read_summary(out) or run_sft(recipe(folder, seed, steps, arm), out_dir=out)
    return found


def rows(found: list[dict[str, dict[str, Any]]]) -> Iterator[list[str]]:
    """A line an arm: good rows drawn, and by kind the mean loss and each seed's difference from `throughout`."""
    for arm in ARMS:
        drawn = {one[arm]["mixture"]["parts"][GOOD]["drawn"] for one in found}
        line = [arm, ", ".join(map(str, sorted(drawn)))]
        for kind in ("good", "mixed"):
            losses = [one[arm]["by_category"][kind]["heldout_loss"] for one in found]
            even = [one["throughout"]["by_category"][kind]["heldout_loss"] for one in found]
            apart = ", ".join(f"{mine - other:+.4f}" for mine, other in zip(losses, even, strict=True))
            line += [f"{fmean(losses):.4f}", "" if arm == "throughout" else apart]
        yield line


def main() -> int:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    prepare()
    found = [run_seed(args.out / f"seed-{seed}", seed, args.steps) for seed in range(args.seeds)]
    header = ("good data", "good rows", "loss on good", "against throughout", "loss on mixed", "against throughout")
    say(table(header, rows(found)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
