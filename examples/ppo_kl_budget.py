"""A callback on PPO: the best model by held-out reward within a KL budget, and no iteration after the budget is spent.

    python examples/ppo_kl_budget.py

Reward can always be bought with distance from the reference (Gao et al. 2022, arXiv 2210.10760), so the budget is on
`eval/kl`, in nats a reply, which is sampled without truncation. `PPOTrainer` drives `transformers.TrainerCallback`s:
every event, with `state`, `control` and `model`; one step of theirs is one iteration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align import PPOConfig, PPOTrainer
from align.models.critic import Critic
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture
from data_formats.records import Message, Prompt
from reward.sources import FunctionReward


class KLBudget(TrainerCallback):
    """Keeps in `folder` the policy with the highest `eval/score` so far, and stops when `eval/kl` passes `budget`."""

    def __init__(self, budget: float, folder: str | Path):
        self.budget, self.folder = budget, Path(folder)
        self.best: dict[str, float] = {"eval/score": float("-inf")}

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict, **kwargs: Any
    ) -> None:
        """Called with the figures of every evaluation, and with `model` and `processing_class`."""
        if metrics["eval/kl"] > self.budget:
            control.should_training_stop = True
        elif metrics["eval/score"] > self.best["eval/score"]:
            self.best = {"step": state.global_step, **metrics}
            if state.is_world_process_zero:
                kwargs["model"].save_pretrained(self.folder)
                kwargs["processing_class"].save_pretrained(self.folder)


def main(output_dir: str | Path = "runs/examples/ppo_kl_budget", budget: float = 3.0) -> dict[str, float]:
    """Train until the budget is spent, and return what the kept model reached and where the run stopped."""
    prompts = [Prompt((Message("user", f"Say something about {topic}."),)) for topic in ("tea", "rain", "jazz", "maps")]
    tokenizer = train_tokenizer([prompt.messages[0].content for prompt in prompts], vocab_size=280)
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=128)
    policy = new_causal_lm(shape, tokenizer, seed=0)
    config = PPOConfig(
        num_iterations=60,
        rollout_batch_size=4,
        num_mini_batches=2,
        micro_batch_size=16,
        critic_warmup_steps=4,
        kl_coef=0.0,
        rollout={"num_generations": 8, "top_p": 1.0, "max_completion_length": 12},
        policy={"learning_rate": 3e-3},
        critic={"learning_rate": 3e-3},
        evaluation={"num_samples": 1, "every_steps": 2},
    )
    vowels = FunctionReward(lambda prompts, completions: [sum(c in "aeiou" for c in text) for text in completions])
    watch = KLBudget(budget, Path(output_dir) / "best")
    models = {"policy": policy, "critic": Critic.from_causal_lm(policy)}
    options = {"output_dir": output_dir, "eval_prompts": 8 * prompts, "callbacks": [watch]}
    trainer = PPOTrainer(**models, reward=vowels, tokenizer=tokenizer, config=config, prompts=prompts, **options)
    state = trainer.train()
    first, last = state.log_history[0], state.log_history[-1]  # both of evaluations
    kept = {"score": watch.best["eval/score"], "kl": watch.best["eval/kl"], "step": watch.best["step"]}
    return {"before": first["eval/score"], **kept, "stopped_at": state.global_step, "stopped_kl": last["eval/kl"]}


if __name__ == "__main__":
    print(main())
