"""An sft stage alone, small enough for tests: a random Qwen2 of width 16, a few conversations (also run by ranks)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from data_formats.chatml import CHAT_TEMPLATE
from tests.tiny_models import byte_tokenizer, save_causal_lm

ANIMALS = ("cat", "dog", "hen", "cow", "fox", "owl", "ant", "bee", "pig", "rat")
CATEGORIES = ("pets", "farm", "")


def conversations(count: int, turns: int = 1, start: int = 0) -> list[dict[str, Any]]:
    """`count` conversations of `turns` exchanges, with categories in turn."""
    rows = []
    for number in range(start, start + count):
        messages = []
        for turn in range(turns):
            animal = ANIMALS[(number + turn) % len(ANIMALS)]
            messages.append({"role": "user", "content": f"{number}: the {animal}?"})
            messages.append({"role": "assistant", "content": f"A {animal}."})
        category = CATEGORIES[number % len(CATEGORIES)]
        rows.append({"messages": messages} | ({"category": category} if category else {}))
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(folder: Path, *, run: str = "run", turns: int = 1, **keys: Any) -> Recipe:
    """The recipe, with its model and files in `folder`; `keys` go into the sft section."""
    if not (folder / "model").exists():
        save_causal_lm(folder / "model", max_position_embeddings=512)
        byte_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(folder / "model")
        write_lines(folder / "train.jsonl", conversations(24, turns))
        write_lines(folder / "heldout.jsonl", conversations(9, turns, start=100))
    section = {
        "data": ["train.jsonl"],
        "eval_data": ["heldout.jsonl"],
        "learning_rate": 0.01,
        "max_length": 256,
        "batch_size": 8,
        "micro_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "eval_num_replies": 4,
        "max_completion_length": 6,
    }
    data = {
        "name": "sft",
        "output_dir": str(folder / run),
        "seed": 3,
        "data_root": str(folder),
        "model": {"path": str(folder / "model")},
        "sft": section | keys,
    }
    return Recipe.model_validate_json(json.dumps(data))


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
