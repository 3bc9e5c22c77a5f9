"""Code of your own that a recipe names: a callback for any stage, and a reward model's trainer with another loss.

    python examples/in_a_recipe.py        # a tiny recipe of its own
    align run quickstart rm.trainer=examples/in_a_recipe.py:HingeTrainer rm.callbacks=examples/in_a_recipe.py:TimeBudget

A stage makes both itself: the callback without arguments, the trainer with those of the class it extends. It notes what
the file held, and says so where that has changed when it goes on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from align import RewardTrainer
from align.recipe import Recipe
from align.stages.chain import run_stage


class TimeBudget(TrainerCallback, ExportableState):
    """Ends a stage, with what it has trained, after an hour of steps; what was spent before a stop counts."""

    seconds = 3600.0

    def __init__(self) -> None:
        self.spent, self.began = 0.0, 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {}, "attributes": {"spent": self.spent}}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Of PPO, a step is an iteration."""
        self.began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The stage saves its model then and is finished; its summary says that a callback ended it."""
        self.spent += time.monotonic() - self.began
        control.should_training_stop |= self.spent >= self.seconds


class HingeTrainer(RewardTrainer):
    """Asks of a pair that its scores are 1 apart, and nothing more."""

    def compute_pair_losses(self, chosen_B: Tensor, rejected_B: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        return torch.relu(1.0 - (chosen_B - rejected_B))


def main(output_dir: str | Path = "runs/examples/in_a_recipe") -> dict[str, float]:
    """A new model, and a reward model that prefers whole sentences; how many held-out pairs it ranks right."""
    folder, topics = Path(output_dir), [f"{word} {number}" for word in ("tea", "rain", "jazz") for number in range(20)]
    pairs = [{"prompt": f"What of {one}?", "chosen": f"I like {one}.", "rejected": one} for one in topics]
    texts = [{"text": f"What of {one}? I like {one}."} for one in topics]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("pairs", pairs), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"learning_rate": 3e-3, "max_length": 64, "batch_size": 8, "micro_batch_size": 8, "holdout": 0.3}
    stage |= {"max_steps": 10, "callbacks": f"{__file__}:TimeBudget"}
    recipe = {"name": "in_a_recipe", "output_dir": str(folder / "run"), "data_root": str(folder)}
    recipe["model"] = {"architecture": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1}}
    recipe["base"] = stage | {"data": ["texts.jsonl"]}
    recipe["rm"] = stage | {"data": ["pairs.jsonl"], "trainer": f"{__file__}:HingeTrainer"}
    made = Recipe.model_validate_json(json.dumps(recipe))
    found = [run_stage(made, name) for name in made.stages]
    return {name: found[-1][name] for name in ("accuracy", "epochs", "train_loss")}


if __name__ == "__main__":
    print(main())
