"""A small rejection stage: a random model of width 16, a reward that counts, prompts of one letter."""

from __future__ import annotations

import json
from pathlib import Path

from align.recipe import Recipe
from align.runtime.files import write_text
from tests.tiny_models import save_causal_lm

REWARD = "def letters(prompts, completions):\n    return [float(len(set(text))) for text in completions]\n"


def recipe(folder: Path, run: str = "run", **changes) -> Recipe:
    """Two rounds of four replies to six prompts; the reward is the number of different characters."""
    if not (folder / "policy").is_dir():
        save_causal_lm(folder / "policy", seed=1, initializer_range=0.05, max_position_embeddings=300)
        write_text(folder / "reward.py", REWARD)
        rows = [{"prompt": f"say {word}", "category": "say" if word < "d" else "tell"} for word in "abcdef"]
        write_text(folder / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_text(folder / "held.jsonl", "".join(json.dumps({"prompt": f"now {word}"}) + "\n" for word in "xyz"))
    section = {
        "data": ["prompts.jsonl"],
        "eval_data": ["held.jsonl"],
        "reward": {"kind": "function", "function": f"{folder}/reward.py:letters"},
        "max_length": 300,
        "batch_size": 2,
        "micro_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 0.01,
        "save_steps": 2,
        "logging_steps": 1,
        "num_rounds": 2,
        "rollout": {"num_generations": 8, "max_prompt_length": 40, "max_completion_length": 40, "batch_size": 16},
    }
    data = {
        "name": "small",
        "output_dir": str(folder / run),
        "data_root": str(folder),
        "seed": 4,
        "model": {"path": str(folder / "policy")},
        "rejection": section | changes,
    }
    return Recipe.model_validate_json(json.dumps(data))
