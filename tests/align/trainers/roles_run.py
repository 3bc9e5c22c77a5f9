"""PPO on roles of one backbone and on four models of their own, with the same samples and the same start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from reward.sources import ModelReward
from tests.align.models import roles_case
from tests.align.trainers import ppo_case

LENGTHS, FINISHED = (5, 1, 7, 3, 2, 6, 4, 7), (True, True, False, True, True, True, False, True)


def models(shared: bool, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, nn.Module]:
    """The policy has learnt something since it was the reference, so that the KL is not 0."""
    separate = roles_case.separate(dtype, **changes)
    if dtype == torch.float64:  # the project's own heads compute in float32
        separate["critic"].head = ExactHead(7)
    made = roles_case.shared(separate, dtype, **changes) if shared else separate
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made["policy"].parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


class ExactHead(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(1, 16, dtype=torch.float64) / 4)

    def forward(self, states_BTd):
        return nn.functional.linear(states_BTd, self.weight).squeeze(-1)


def trainer(folder: Path, parts: dict[str, nn.Module], **options: Any):
    reward = ModelReward(parts["reward"].eval(), ppo_case.TOKENIZER, batch_size=3)
    made = ppo_case.trainer(
        folder,
        kind=options.pop("kind", ppo_case.Recorder),
        policy_model=parts["policy"],
        critic_model=parts["critic"],
        reference=parts["reference"],
        reward=options.pop("reward", reward),
        **{"num_iterations": 2, "num_ppo_epochs": 2, "ptx_coef": 0.3, "ptx_ratio": 1, "log_samples": 2}
        | {"ptx_blocks": [[3, 8, 200, 17, 4], [9, 256, 11], [40, 41, 42, 43, 44, 45, 46], [5, 6]]}
        | options,
    )
    made.given = [ppo_case.samples(LENGTHS, finished=FINISHED, seed=seed, to_a_prompt=2) for seed in range(3)]
    return made


def weights(parts: dict[str, nn.Module]) -> dict[str, list[torch.Tensor]]:
    """Of each role, its adapter and head."""
    frozen = {"reference": "lora_", "reward": ("lora_", "head.")}
    found = {}
    for name, model in parts.items():
        chosen = frozen.get(name)
        found[name] = [
            parameter.detach().clone()
            for key, parameter in model.named_parameters()
            if (parameter.requires_grad if chosen is None else any(part in key for part in _several(chosen)))
        ]
    return found


def _several(parts: str | tuple[str, ...]) -> tuple[str, ...]:
    return (parts,) if isinstance(parts, str) else parts
