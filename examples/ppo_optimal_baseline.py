"""A fifth advantage estimator, registered from outside: OPO's optimal baseline (Hao et al. 2025, arXiv 2505.23585).

    python examples/ppo_optimal_baseline.py

A reply's advantage is its reward minus the mean reward of all replies to its prompt, each weighed by its length: the
baseline with the least variance, if the squared norm of a reply's gradient grows with its tokens. With one minibatch
and one pass the ratio is 1 and the clip idle, as the paper wants it: exactly on policy, and here without a KL.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from align import PPOConfig, PPOTrainer, functional
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.estimators import Estimator
from align.recipe.model_section import Architecture
from align.trainers.ppo.advantages import register
from data_formats.records import Message, Prompt
from reward.sources import FunctionReward


@register("opo", Estimator(groups=True))
class OptimalBaseline:
    """Needs no critic, and at least two replies to a prompt."""

    def __init__(self, config: PPOConfig):
        self.config = config

    def __call__(
        self, rewards_NS: Tensor, values_NS: Tensor | None, mask_NS: Tensor, groups_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(advantages_NS, None, since no critic has targets): every token of a reply has the reply's advantage."""
        rewards_N, lengths_N = functional.masked_sum(rewards_NS, mask_NS, dim=1), mask_NS.sum(1)
        advantages_NS = torch.zeros_like(rewards_NS)
        for group in groups_N.unique():
            rows = groups_N == group
            baseline = (lengths_N * rewards_N)[rows].sum() / lengths_N[rows].sum().clamp(min=1)
            advantages_NS[rows] = (rewards_N[rows] - baseline)[:, None] * mask_NS[rows]
        return advantages_NS, None


def main(output_dir: str | Path = "runs/examples/ppo_optimal_baseline") -> dict[str, float]:
    """Train for vowels, and return the mean reward of sampled replies before and after."""
    prompts = [Prompt((Message("user", f"Say something about {topic}."),)) for topic in ("tea", "rain", "jazz", "maps")]
    tokenizer = train_tokenizer([prompt.messages[0].content for prompt in prompts], vocab_size=280)
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=128)
    policy = new_causal_lm(shape, tokenizer, seed=0)
    config = PPOConfig(
        advantage="opo",  # in a recipe: ppo.advantage, of a program that has imported this one
        num_iterations=40,
        rollout_batch_size=4,
        num_mini_batches=1,
        micro_batch_size=32,
        kl_coef=0.0,
        normalize_reward="none",  # a constant taken off all rewards changes no advantage here
        rollout={"num_generations": 8, "top_p": 1.0, "max_completion_length": 12},
        policy={"learning_rate": 5e-3},
    )
    vowels = FunctionReward(lambda prompts, completions: [sum(c in "aeiou" for c in text) for text in completions])
    trainer = PPOTrainer(policy, None, vowels, tokenizer, config, prompts, output_dir=output_dir)
    before = trainer.evaluate(prompts, num_samples=8)["eval/score"]
    trainer.train()
    trainer.save_model(Path(output_dir) / "model")
    return {"before": before, "after": trainer.evaluate(prompts, num_samples=8)["eval/score"]}


if __name__ == "__main__":
    print(main())
