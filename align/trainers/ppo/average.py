"""The moving average of a policy's weights, which can be sampled from and saved like the policy."""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from torch import nn

from align.trainers import sharding


class WeightAverage:
    """A copy of `module` that `update(module)` moves: `copy = decay * copy + (1 - decay) * module` (Ouyang et al. 2022,
    appendix C.4: 0.992).

    It starts as the module is, which is not prepared yet: FSDP2 has no copies of what is sharded. The copy lies,
    sharded alike, where the module will. What is frozen (the base of an adapter) is shared, but for FSDP2, which shards
    each of the two by itself.
    """

    def __init__(self, module: nn.Module, decay: float, accelerator: Accelerator):
        frozen = {} if accelerator.is_fsdp2 else {id(p): p for p in _frozen(module)}
        self.decay = decay
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.module, _ = sharding.prepare(accelerator, copy.deepcopy(module, frozen).requires_grad_(False))

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's weights as they are now."""
        mine, its = dict(self.module.named_parameters()), dict(module.named_parameters())
        for name in self.names:
            mine[name].lerp_(its[name].detach(), 1.0 - self.decay)


def _frozen(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if not parameter.requires_grad]
