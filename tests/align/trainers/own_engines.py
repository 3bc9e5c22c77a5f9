"""Engines with weights of their own for tests, sound ones and broken ones, and policies for them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.weights import checkpoint_tensors
from tests.align.trainers import ppo_case

KINDS = {
    "full": None,
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "all_linear": {"target_modules": "all-linear"},
    "saved": {"modules_to_save": ["lm_head"]},
}


def policy_of(kind: str, seed: int = 0, **changes) -> nn.Module:
    """A policy to train, with an adapter or without."""
    model, options = ppo_case.policy(seed, **changes), KINDS[kind]
    if options is None:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    options = {"r": 2, "target_modules": ["q_proj", "up_proj"]} | options
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))


class Own(HFEngine):
    """Generates with a model of its own, which starts with other weights than any policy."""

    def __init__(self, model: nn.Module | None = None, **options):
        super().__init__(model or ppo_case.policy(99), 0, shares_module=False, **options)


class Adapting(Own):
    """Holds a PEFT model and takes base and adapter apart."""

    takes_adapters = True

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.pushes: list[str] = []

    def update_weights(self, named_tensors, version):
        own = dict(checkpoint_tensors(self.model, merge=False))
        for name, tensor in named_tensors:
            own.pop(name).copy_(tensor)
        assert not own
        self.pushes.append("base")

    def update_adapter(self, config, named_tensors, version):
        from peft import set_peft_model_state_dict

        assert config["r"] == self.model.active_peft_config.r
        found = set_peft_model_state_dict(self.model, dict(named_tensors))
        assert not found.unexpected_keys
        self.pushes.append("adapter")
        self.weight_version = version


class Skipping(Own):
    """Says yes and takes nothing, from the push `after` on."""

    after = 1

    def update_weights(self, named_tensors, version):
        if version < self.after:
            super().update_weights(named_tensors, version)


class Forgetful(Own):
    """Leaves one layer's tensor as it was."""

    def update_weights(self, named_tensors, version):
        kept = "model.layers.1.mlp.up_proj.weight"
        own = dict(self.model.named_parameters())[kept]
        super().update_weights(((n, own.clone() if n == kept and version else t) for n, t in named_tensors), version)


class StaleCache(Own):
    """Scores with the new weights and samples with those before, as a prefix cache that was not emptied does."""

    def update_weights(self, named_tensors, version):
        old = copy.deepcopy(self.model)
        super().update_weights(named_tensors, version)
        self.before = old if version else self.model

    def generate(self, prompts, params):
        now, self.model = self.model, self.before
        try:
            return super().generate(prompts, params)
        finally:
            self.model = now


class StaleAdapter(Adapting):
    """Keeps its first adapter."""

    def update_adapter(self, config, named_tensors, version):
        if "adapter" in self.pushes:
            named_tensors = list(named_tensors)[:0]
        super().update_adapter(config, named_tensors, version)


class Failing(Own):
    """Breaks off in the middle of the second push."""

    def update_weights(self, named_tensors, version):
        if version:
            next(iter(named_tensors))
            raise RolloutError("the engine died")
        super().update_weights(named_tensors, version)


class Greedy:
    """Token ids that a module gives greedily, by a forward pass a token and nothing else."""

    @staticmethod
    @torch.no_grad()
    def ids(module: nn.Module, prompt: list[int], count: int) -> tuple[int, ...]:
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        return tuple(ids[len(prompt) :])
