"""The independent PPO of `ppo_reference.py` with advantages that need no critic; imports that file alone.

The rewards are its own; here a reply is compared with the others to its prompt, which stand beside it, as the papers
define it: float64, one number at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from tests.align.trainers import ppo_reference


@dataclass
class Settings(ppo_reference.Settings):
    """Named as the recipe's keys."""

    advantage: str = "gae"
    num_generations: int = 2


class Nothing(torch.nn.Module):
    """Every state is worth 0."""

    def forward(self, input_ids, attention_mask):
        return torch.zeros(input_ids.shape, dtype=torch.float64)


def returns_of(rewards, gamma):
    """What follows each token, itself included, discounted by how far away it is (Williams 1992; Hu 2025)."""
    return [sum(gamma ** (later - t) * rewards[later] for later in range(t, len(rewards))) for t in range(len(rewards))]


def compared(total, others, kind):
    """The advantage of a reply with reward `total` beside `others`, the rewards of the replies it is compared with."""
    if not others:
        return 0.0
    if kind == "rloo":  # Ahmadian et al. 2024
        return total - sum(others) / len(others)
    group = [total, *others]
    mean = sum(group) / len(group)
    if kind == "dr_grpo":  # Liu et al. 2025
        return total - mean
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in group) / (len(group) - 1))
    return (total - mean) / (deviation + 1e-4)  # Shao et al. 2024


def experience(policy, reference, sampled, state, settings):
    """As `ppo_reference.experience`, without a critic."""
    plain = replace(settings, whiten_advantages=False)
    made, _ = ppo_reference.experience(policy, Nothing(), reference, sampled, state, plain)
    size = settings.num_generations
    for row, reply in enumerate(made):
        reply.returns = reply.advantages = returns_of(reply.rewards, settings.gamma)
        if settings.advantage != "reinforce_pp":
            first = row - row % size
            beside = [made[other] for other in range(first, first + size) if other != row and made[other].counts]
            advantage = compared(sum(reply.rewards), [sum(other.rewards) for other in beside], settings.advantage)
            reply.advantages = [advantage] * len(reply.rewards)
    counted = [reply for reply in made if reply.counts]
    spread = ppo_reference.whiten([list(reply.advantages) for reply in counted])
    if settings.whiten_advantages:
        for reply in counted:
            reply.advantages = list(reply.advantages)  # the returns stay as they are
        ppo_reference.whiten([reply.advantages for reply in counted])
    return made, spread
