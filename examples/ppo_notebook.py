"""PPO cell by cell, with no recipe file: open it in an editor that knows `# %%` cells, or run it from top to bottom.

    python examples/ppo_notebook.py

Everything is made on the spot: a tokenizer, a tiny policy with random weights, a reward. For real models, load policy
and tokenizer with transformers; the other cells stay as they are.
"""

# %% What to import
import json
from pathlib import Path

import matplotlib.pyplot as plt

from align import Critic, PPOConfig, PPOTrainer
from align.models.load import new_causal_lm
from align.models.tokenizer import train_tokenizer
from align.recipe.model_section import Architecture

output_dir = Path("runs/examples/ppo_notebook")

# %% Prompts, tokenizer, policy; the critic starts from the policy's body
topics = ("tea", "rain", "bread", "music", "cats", "chess", "trees", "maps")
prompts = [f"Say something about {topic}." for topic in topics]
tokenizer = train_tokenizer(prompts, vocab_size=300)
shape = Architecture(hidden_size=32, intermediate_size=64, num_hidden_layers=1, max_position_embeddings=128)
policy = new_causal_lm(shape, tokenizer, seed=0)
critic = Critic.from_causal_lm(policy)


# %% A reward: how many vowels a reply has
def vowels(prompts: list[list[dict]], completions: list[str]) -> list[int]:
    return [sum(character in "aeiou" for character in text) for text in completions]


# %% A configuration; every key and its default: help(PPOConfig), or PPOConfig(num_iterations=100)
config = PPOConfig(
    num_iterations=30,
    rollout_batch_size=8,
    num_mini_batches=2,
    micro_batch_size=16,
    critic_warmup_steps=4,
    rollout={"num_generations": 4, "top_p": 1.0, "max_completion_length": 12},
    policy={"learning_rate": 3e-3},
    critic={"learning_rate": 3e-3},
)
trainer = PPOTrainer(policy, critic, vowels, tokenizer, config, prompts, output_dir=output_dir)

# %% Before: figures on the prompts, and a few replies
before = trainer.evaluate(prompts, num_samples=4)
print([sample.completion for sample in trainer.collect(prompts[:2]).for_reward()])

# %% Train
state = trainer.train()

# %% After
after = trainer.evaluate(prompts, num_samples=4)
print([sample.completion for sample in trainer.collect(prompts[:2]).for_reward()])

# %% Curves, from what the trainer remembers; metrics.jsonl in output_dir holds the same lines
names = ("score/mean", "kl/reply", "entropy", "value/explained_variance")
figure, axes = plt.subplots(1, len(names), figsize=(14, 3), layout="constrained")
for axis, name in zip(axes, names, strict=True):
    axis.plot([line["step"] for line in state.log_history], [line[name] for line in state.log_history])
    axis.set(title=name, xlabel="iteration")
figure.savefig(output_dir / "curves.png")

# %% Keep the policy; the last line is what changed
trainer.save_model(output_dir / "model")
figures = {"before": before["eval/score"], "after": after["eval/score"], "kl": after["eval/kl"]}
print(json.dumps(figures))
