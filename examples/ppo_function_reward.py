"""PPO as in a notebook: no recipe file, a reward that is a Python function.

    python examples/ppo_function_reward.py

A policy with random weights writes gibberish; the function likes vowels; after thirty iterations it writes vowels.
For a real model, load policy and tokenizer with transformers, and let the critic start from a reward model.
"""

from __future__ import annotations

from pathlib import Path

from align import Critic, PPOConfig, PPOTrainer
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture

TOPICS = ("tea", "rain", "bread", "music", "cats", "chess", "trees", "maps")


def vowels(prompts: list[list[dict]], completions: list[str], category: list[str]) -> list[float]:
    """The share of vowels in each reply. Columns of the prompts' records come by name; here only `category` is."""
    return [sum(character in "aeiou" for character in text) / max(len(text), 1) for text in completions]


def main(output_dir: str | Path = "runs/examples/ppo_function_reward") -> dict[str, float]:
    """Train, and return the mean reward of sampled replies before and after."""
    prompts = [{"prompt": f"Say something about {topic}.", "category": "talk"} for topic in TOPICS]
    tokenizer = train_tokenizer([prompt["prompt"] for prompt in prompts], vocab_size=300)
    shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=128)
    policy = new_causal_lm(shape, tokenizer, seed=0)
    config = PPOConfig(
        num_iterations=30,
        rollout_batch_size=8,
        num_mini_batches=2,
        micro_batch_size=8,
        critic_warmup_steps=4,
        missing_eos_penalty=0.0,
        kl_coef=0.0,
        cliprange_value=None,
        rollout={"num_generations": 4, "top_p": 1.0, "max_completion_length": 12},
        policy={"learning_rate": 3e-3},
        critic={"learning_rate": 3e-3},
        evaluation={"num_samples": 1},
    )
    trainer = PPOTrainer(
        policy,
        Critic.from_causal_lm(policy),
        vowels,
        tokenizer,
        config,
        prompts,
        output_dir=output_dir,
        eval_prompts=prompts,
    )
    before = trainer.evaluate()["eval/score"]
    trainer.train()
    after = trainer.evaluate()["eval/score"]
    trainer.save_model(Path(output_dir) / "model")
    return {"before": before, "after": after}


if __name__ == "__main__":
    print(main())
