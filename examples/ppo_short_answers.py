"""A trainer of your own: PPO in which every token costs something, so that the policy learns to be brief.

    python examples/ppo_short_answers.py

`shape_rewards` is one of the short methods that `PPOTrainer.step` is made of; the others (`collect`, `score`,
`normalize_scores`, `compute_advantages`, `policy_loss`, `value_loss`, `ptx_loss`, `update`) are replaced the same way.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from align import PPOConfig, PPOTrainer
from align.models.critic import Critic
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture
from data_formats.records import Message, Prompt
from reward.sources import FunctionReward


class BriefPPOTrainer(PPOTrainer):
    """Takes `token_cost` off the reward of every token of a reply."""

    token_cost = 0.1

    def shape_rewards(self, normalized_N: Tensor, kl_NS: Tensor, mask_NS: Tensor) -> Tensor:
        """rewards_NS as ever, minus the cost where a token of the reply stands."""
        return super().shape_rewards(normalized_N, kl_NS, mask_NS) - self.token_cost * mask_NS


def train(trainer_class: type[PPOTrainer], output_dir: str | Path) -> dict[str, float]:
    """Mean reply length, in tokens, before and after; the reward itself does not care about it."""
    prompts = [Prompt((Message("user", f"What is {number}?"),)) for number in "12345678"]
    tokenizer = train_tokenizer([prompt.messages[0].content for prompt in prompts], vocab_size=262)
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=64)
    policy = new_causal_lm(shape, tokenizer, seed=0)
    config = PPOConfig(
        num_iterations=40,
        rollout_batch_size=8,
        num_mini_batches=2,
        micro_batch_size=16,
        critic_warmup_steps=4,
        missing_eos_penalty=0.0,
        kl_coef=0.0,
        cliprange_value=None,
        rollout={"num_generations": 4, "top_p": 1.0, "max_completion_length": 16},
        policy={"learning_rate": 3e-3},
        critic={"learning_rate": 3e-3},
    )
    reward = FunctionReward(lambda prompts, completions: [0.0] * len(completions), name="indifferent")
    trainer = trainer_class(
        policy, Critic.from_causal_lm(policy), reward, tokenizer, config, prompts, output_dir=output_dir
    )
    before = trainer.evaluate(prompts)["eval/length"]
    trainer.train()
    return {"before": before, "after": trainer.evaluate(prompts)["eval/length"]}


def main(output_dir: str | Path = "runs/examples/ppo_short_answers") -> dict[str, float]:
    """Train with the subclass."""
    return train(BriefPPOTrainer, output_dir)


if __name__ == "__main__":
    print(main())
