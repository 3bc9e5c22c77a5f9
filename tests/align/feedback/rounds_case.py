"""Rounds small enough for tests: a random model of width 16, prompts of one letter, a judge that counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from tests.tiny_models import save_causal_lm

CODE = """\
def letters(prompts, completions):
    return [float(len(set(text))) for text in completions]

def richer(prompts, first, second):
    return [len(set(one)) - len(set(other)) for one, other in zip(first, second)]
"""
SMALL = {"max_length": 300, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.01, "max_steps": 2}
SMALL |= {"logging_steps": 1, "save_steps": 1}
ROLLOUT = {"num_generations": 4, "max_prompt_length": 40, "max_completion_length": 16, "batch_size": 32}
REJECTION = SMALL | {"data": [{"path": "prompts.jsonl"}], "rollout": ROLLOUT}
DPO = SMALL | {"data": [{"path": "comparisons.jsonl"}], "holdout": 0.0, "max_completion_length": 8}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def small_rounds(folder: Path, run: str = "run", **changes: Any) -> Recipe:
    """sft once, then rm and rejection twice; `changes` are sections."""
    if not (folder / "policy").is_dir():
        save_causal_lm(folder / "policy", seed=1, initializer_range=0.05, max_position_embeddings=300)
        (folder / "code.py").write_text(CODE)
        asked = [[{"role": "user", "content": f"say {letter}"}] for letter in "abcdefgh"]
        write(folder / "prompts.jsonl", [{"prompt": turns, "category": "say"} for turns in asked])
        write(folder / "held.jsonl", [{"prompt": f"now {letter}"} for letter in "xyz"])
        talk = [{"messages": [*turns, {"role": "assistant", "content": "so be it"}]} for turns in asked]
        write(folder / "demonstrations.jsonl", talk)
        pairs = [{"prompt": turns, "chosen": f"abc {at}", "rejected": "aaaa"} for at, turns in enumerate(asked)]
        write(folder / "comparisons.jsonl", pairs)
    data = {
        "name": "small",
        "output_dir": str(folder / run),
        "data_root": str(folder),
        "seed": 4,
        "model": {"path": str(folder / "policy")},
        "sft": SMALL | {"data": [{"path": "demonstrations.jsonl"}], "eval_num_replies": 2, "max_completion_length": 8},
        "rm": SMALL | {"data": [{"path": "comparisons.jsonl"}], "holdout": 0.3},
        "rejection": REJECTION,
        "collect": {
            "data": [{"path": "prompts.jsonl"}],
            "sources": [{"model": "newest"}, {"model": "before", "temperature": 1.2}],
            "num_replies": 3,
            "max_completion_length": 12,
        },
        "rounds": {
            "num_rounds": 2,
            "judge": {"kind": "comparison", "function": f"{folder}/code.py:richer"},
            "eval_data": [{"path": "held.jsonl"}],
        },
    }
    return Recipe.model_validate_json(json.dumps(data | changes))
