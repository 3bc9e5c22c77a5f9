"""Tiny PPO runs for the doctor: a policy that has learned to give short replies and to end them."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import torch
from torch import nn

from align.data.encode import encode_prompts
from align.doctor import Diagnosis, History, examine, read_history
from align.recipe.text import dump
from align.runtime.files import write_text
from tests.align.trainers import ppo_case

LETTERS = "abcdefgh"
SETTINGS = {
    "num_iterations": 12,
    "rollout_batch_size": 8,
    "num_mini_batches": 2,
    "micro_batch_size": 16,
    "critic_warmup_steps": 8,
    "cliprange_value": 0.5,
    "log_samples": 16,
    "policy": {"learning_rate": 2e-3},
    "critic": {"learning_rate": 1e-2},
    "rollout": {"max_completion_length": 12},
}


@functools.cache
def _taught(steps: int = 120) -> dict[str, torch.Tensor]:
    """Weights after some supervised steps on replies of 1 to 6 letters."""
    model, rng = ppo_case.policy(), random.Random(0)
    prompts = encode_prompts(ppo_case.TOKENIZER, [prompt.messages for prompt in ppo_case.prompts(6)], [None] * 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        rows = []
        for prompt in rng.choices(prompts, k=8):
            letters = ppo_case.TOKENIZER.encode("".join(rng.choices(LETTERS, k=rng.randint(1, 6))))
            rows.append((list(prompt), [*letters, ppo_case.END]))
        width = max(len(prompt) + len(reply) for prompt, reply in rows)
        ids, labels = torch.zeros(8, width, dtype=torch.long), torch.full((8, width), -100)
        mask = torch.zeros(8, width, dtype=torch.long)
        for row, (prompt, reply) in enumerate(rows):
            whole = torch.tensor(prompt + reply)
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
            labels[row, len(prompt) : len(whole)] = torch.tensor(reply)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def taught() -> nn.Module:
    """A policy whose replies are 1 to 6 of the letters, and end."""
    model = ppo_case.policy()
    model.load_state_dict(_taught())
    return model


def sound(prompts, completions):
    """The share of vowels, which does not pay for length, and 1 for some prompts, for a critic to learn."""
    shares = [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]
    return [share + ("c" in prompt[-1]["content"]) for prompt, share in zip(prompts, shares, strict=True)]


def length(prompts, completions):
    """Characters."""
    return [0.2 * len(text) for text in completions]


def run(folder: Path, **changes) -> Path:
    """A run in `folder` as SETTINGS say, with `changes`; a section's changes are joined."""
    joined = {key: SETTINGS[key] | changes.pop(key, {}) for key in ("policy", "critic", "rollout")}
    options = {"policy_model": taught(), "critic_model": ppo_case.critic(head_scale=0.0), "reward": sound}
    trainer = ppo_case.trainer(folder, **(options | SETTINGS | changes | joined))
    write_text(folder / "recipe.yaml", dump({"ppo": trainer.config.model_dump(mode="json")}))
    trainer.train()
    settle_times(folder / "metrics.jsonl")
    return folder


def settle_times(file: Path) -> None:
    """Equal times in every line, so that a busy machine is no symptom."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line |= {key: 1000.0 for key in line if key.startswith("tokens_per_second")}
        line |= {key: 0.1 for key in line if key.startswith("seconds/")}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def diagnosis(folder: Path) -> tuple[History, Diagnosis]:
    """What the doctor reads and says."""
    history = read_history(folder)
    return history, examine(history)


def words(found: Diagnosis) -> dict[str, str]:
    """Rule -> what it saw."""
    return {finding.rule.name: finding.evidence.words for finding in found.findings}
