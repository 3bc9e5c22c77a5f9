"""LoRA adapters on their way to and from a shared backbone: PEFT's folders, and the names of their tensors.

An adapter that was trained on a model without its language modelling head (reward model, critic) knows the layers as
`layers.0…`, one of a causal language model as `model.layers.0…`; on the shared backbone all bear the longer names.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.runtime.errors import AlignError
from reward.adapter import CONFIG, HEAD, WEIGHTS, peft_config, without_classifier
from reward.errors import ModelFileError
from reward.folder import check_safetensors
from reward.loading import hub_file

ROOT = "base_model.model."  # PEFT's, before the names of the wrapped model


class RoleError(AlignError, RuntimeError):
    """Models that cannot share a backbone, or a shared one used in a way that would mix its roles."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter off its model.

    Attributes:
        config: PEFT's; written again as it is when a role is saved.
        tensors: as in `adapter_model.safetensors`; None: a new adapter, drawn from the global generator, which leaves
            the base's outputs as they are.
        of_body: trained on the model without its language modelling head.
    """

    config: LoraConfig
    tensors: dict[str, Tensor] | None = None
    of_body: bool = False

    @classmethod
    def read(cls, path: str | Path, *, of_body: bool = False, **hub_options: Any) -> Self:
        """From a folder or hub id in PEFT's format.

        Raises:
            RoleError: not LoRA.
            ModelFileError: torn or incomplete files.
        """
        file = hub_file(path, WEIGHTS, **hub_options)
        if hub_file(path, CONFIG, **hub_options) is None or file is None:
            raise ModelFileError(f"{path} holds no adapter in safetensors: it needs {CONFIG} and {WEIGHTS}")
        config = peft_config(path, file)
        if not isinstance(config, LoraConfig):
            raise RoleError(f"{path} holds an adapter of type {config.peft_type}; a shared backbone takes LoRA alone")
        check_safetensors(file)
        tensors = load_file(file)
        return cls(config, without_classifier(tensors, config) if of_body else tensors, of_body)

    @classmethod
    def of(cls, model: Any, name: str = "default", *, of_body: bool = False) -> Self:
        """A copy of an adapter of a PEFT model in memory."""
        tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        copies = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        return cls(copy.deepcopy(model.peft_config[name]), copies, of_body)

    def on(self, body_prefix: str) -> Adapter:
        """The same with the names it has on a causal language model whose body is called `body_prefix`.

        Raises:
            RoleError: biases are trained, which would be the base's.
        """
        config = copy.deepcopy(self.config)
        config.inference_mode = False
        if config.bias != "none":
            raise RoleError(
                f"an adapter that trains biases (bias: {config.bias}) changes the base; share none of those"
            )
        if not self.of_body:
            return replace(self, config=config)
        if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
            config.target_modules = f"{body_prefix.replace('.', '[.]')}(?:{config.target_modules})"
        tensors = None if self.tensors is None else {_longer(name, body_prefix): t for name, t in self.tensors.items()}
        return replace(self, config=config, tensors=tensors)

    def for_body(self, body_prefix: str) -> Adapter:
        """The part of a causal language model's adapter that lies in the body, as a critic starts from it."""
        if self.of_body or self.tensors is None:
            return replace(self, of_body=True)
        inside = {name: tensor for name, tensor in self.tensors.items() if name.startswith(ROOT + body_prefix)}
        config = copy.deepcopy(self.config)
        config.task_type, config.ensure_weight_tying = None, False
        outside = {name.removeprefix(ROOT).split(".lora_")[0] for name in self.tensors.keys() - inside.keys()}
        if outside and isinstance(config.exclude_modules, str):
            config.exclude_modules = "|".join([f"(?:{config.exclude_modules})", *map(re.escape, sorted(outside))])
        elif outside:
            config.exclude_modules = sorted({*(config.exclude_modules or ()), *outside})
        if isinstance(config.trainable_token_indices, dict):
            rows = {name: ids for name, ids in config.trainable_token_indices.items() if name != HEAD}
            config.trainable_token_indices = rows or None
        config.modules_to_save = [
            module for module in config.modules_to_save or () if any(f".{module}." in name for name in inside)
        ] or None
        return Adapter(config, {_shorter(name, body_prefix): tensor for name, tensor in inside.items()}, of_body=True)


def adapter_parameters(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and tensors of one adapter on a PEFT model; every other tensor is the base's or another adapter's."""
    for place, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            for own, parameter in module.named_parameters():
                if own.split(".")[1:2] == [name]:  # lora_A.NAME.weight, modules_to_save.NAME.weight
                    yield f"{place}.{own}", parameter


def load_tensors(model: Any, role: str, adapter: Adapter) -> None:
    """Put an adapter's tensors where `role` was added; nothing for a new one.

    Raises:
        RoleError: tensors that are missing, too many, or of another shape.
    """
    if adapter.tensors is None:
        return
    own = get_peft_model_state_dict(model, adapter_name=role, save_embedding_layers=False)
    given = adapter.tensors
    if wrong := sorted(own.keys() ^ given.keys()):
        where = "is missing in it" if wrong[0] in own else "has no place on the base"
        raise RoleError(f"the adapter of the {role} does not fit the shared base: '{wrong[0]}' {where}")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(own[name].shape)}"
            raise RoleError(f"the adapter of the {role} does not fit the shared base: '{name}' is {shapes}")
    set_peft_model_state_dict(model, given, adapter_name=role)


def save_adapter(
    model: nn.Module, role: str, adapter: Adapter, state: dict[str, Tensor], folder: Path, body_prefix: str | None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        state: the role's tensors by PEFT's names, the role's included.
        body_prefix: for an adapter of the body: what its names leave out.
    """
    tensors = get_peft_model_state_dict(model, state_dict=state, adapter_name=role, save_embedding_layers=False)
    if body_prefix is not None:
        tensors = {_shorter(name, body_prefix): tensor for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    once = {tensor.data_ptr(): name for name, tensor in kept.items()}
    kept |= {name: tensor.clone() for name, tensor in kept.items() if once[tensor.data_ptr()] != name}  # tied weights
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(model.peft_config[role])
    if body_prefix is not None and isinstance(config.target_modules, str):
        config.target_modules = adapter.config.target_modules
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _longer(name: str, body_prefix: str) -> str:
    inner = name.removeprefix(ROOT).removeprefix(body_prefix)  # a reward model's has it, as in a classifier
    return f"{ROOT}{body_prefix}{inner}"


def _shorter(name: str, body_prefix: str) -> str:
    return name.replace(ROOT + body_prefix, ROOT, 1)
