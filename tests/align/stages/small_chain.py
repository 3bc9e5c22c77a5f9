"""A chain small enough for tests: a new model of width 16 on a few files written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from align.stages.recipe_guard import changes

COLOURS = ("red", "blue", "green", "white")
THINGS = ("cup", "door", "hat", "car", "tree", "book", "lamp", "shoe", "ball", "coat")


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path) -> None:
    """documents, demonstrations and comparisons about the colours of things."""
    facts = [(thing, colour) for thing in THINGS for colour in COLOURS]
    _write(
        folder / "documents.jsonl",
        [{"text": f"The {thing} is {colour}. I like the {thing}."} for thing, colour in facts],
    )
    ask = "Which colour has the {} near {}?"
    asked = [
        (ask.format(thing, other), thing, colour) for (thing, colour), other in zip(facts, THINGS * 4, strict=True)
    ]
    _write(
        folder / "demonstrations.jsonl",
        [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"The {t} is {c}."}]}
            for q, t, c in asked
        ],
    )
    _write(
        folder / "comparisons.jsonl",
        [
            {
                "prompt": [{"role": "user", "content": q}],
                "chosen": f"The {t} is {c}, I am glad to say.",
                "rejected": f"{c}!",
                "category": "knowledge" if index % 2 else "language",
                "tags": ["correctness"] if index % 3 == 0 else [],
            }
            for index, (q, t, c) in enumerate(asked)
        ],
    )


def small_recipe(folder: Path, **changes: Any) -> Recipe:
    """base, sft, pmp and rm; `changes` are dotted with two underscores, `sft__max_steps=3`."""
    common = {"max_length": 64, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.01, "holdout": 0.3}
    common |= {"logging_steps": 1, "eval_batch_size": 16}
    data: dict[str, Any] = {
        "name": "small",
        "output_dir": str(folder / "run"),
        "seed": 1,
        "data_root": str(folder),
        "model": {
            "architecture": {
                "vocab_size": 300,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 128,
            }
        },
        "base": {**common, "data": [{"path": "documents.jsonl"}], "max_steps": 6},
        "sft": {
            **common,
            "data": [{"path": "demonstrations.jsonl"}],
            "max_steps": 4,
            "eval_num_replies": 4,
            "max_completion_length": 8,
        },
        "pmp": {**common, "data": [{"path": "comparisons.jsonl"}], "max_steps": 3},
        "rm": {**common, "data": [{"path": "comparisons.jsonl"}], "max_steps": 3, "center_scores": True},
    }
    for key, value in changes.items():
        here = data
        *parents, last = key.split("__")
        for part in parents:
            here = here[part]
        here[last] = value
    return Recipe.model_validate_json(json.dumps(data))


def changed_keys(recipe: Recipe, stage: str, folder: Path) -> list[str]:
    """Every change of the recipe that matters to a stage, in words."""
    return [str(one) for one in changes(recipe, stage, folder)]
