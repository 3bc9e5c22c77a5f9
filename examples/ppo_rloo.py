"""PPO without a critic: the advantage estimator is replaced by RLOO (Ahmadian et al. 2024, arXiv 2402.14740).

    python examples/ppo_rloo.py

A reply's advantage is its reward, KL included, minus the mean reward of the other replies to the same prompt, and it is
the same for every token: the reply is one action. With one minibatch and one pass the ratio is 1 and the clip idle, so
the gradient is REINFORCE's. The critic is switched off by being a module of one number that is always 0.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from align import PPOConfig, PPOTrainer, functional
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture
from data_formats.records import Message, Prompt
from reward.sources import FunctionReward


class NoCritic(nn.Module):
    """The value of every state is 0. The one parameter is there for the optimizer, and stays 0."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.value.expand(input_ids.shape)


class RLOOTrainer(PPOTrainer):
    """Leave-one-out advantages from `num_generations` replies to each prompt: at least 2, none of them masked."""

    def compute_advantages(
        self, rewards_NS: Tensor, values_NS: Tensor, mask_NS: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """As ever; the critic's target is what it says already, so its loss and its gradient are 0."""
        count = self.config.rollout.num_generations
        rewards_PG = functional.masked_sum(rewards_NS, mask_NS, dim=1).view(-1, count)  # a prompt's are neighbours
        others_PG = (rewards_PG.sum(1, keepdim=True) - rewards_PG) / (count - 1)
        advantages_NS = (rewards_PG - others_PG).view(-1, 1) * mask_NS
        moments = functional.Moments.of(advantages_NS, mask_NS)
        if self.config.whiten_advantages:
            advantages_NS = functional.whiten(advantages_NS, mask_NS, moments.mean, moments.var)
        return advantages_NS, values_NS, float(moments.var.sqrt())


def main(output_dir: str | Path = "runs/examples/ppo_rloo") -> dict[str, float]:
    """Train for vowels, and return the mean reward of sampled replies before and after."""
    prompts = [Prompt((Message("user", f"Say something about {topic}."),)) for topic in ("tea", "rain", "jazz", "maps")]
    tokenizer = train_tokenizer([prompt.messages[0].content for prompt in prompts], vocab_size=280)
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=128)
    policy = new_causal_lm(shape, tokenizer, seed=0)
    config = PPOConfig(
        num_iterations=40,
        rollout_batch_size=4,
        num_mini_batches=1,
        micro_batch_size=32,
        critic_warmup_steps=0,
        normalize_reward="none",  # a constant taken off all rewards changes no advantage here
        whiten_advantages=False,
        rollout={"num_generations": 8, "top_p": 1.0, "max_completion_length": 12},
        policy={"learning_rate": 5e-3},
    )
    vowels = FunctionReward(lambda prompts, completions: [sum(c in "aeiou" for c in text) for text in completions])
    trainer = RLOOTrainer(policy, NoCritic(), vowels, tokenizer, config, prompts, output_dir=output_dir)
    before = trainer.evaluate(prompts, num_samples=8)["eval/score"]
    trainer.train()
    trainer.save_model(Path(output_dir) / "model")
    return {"before": before, "after": trainer.evaluate(prompts, num_samples=8)["eval/score"]}


if __name__ == "__main__":
    print(main())
