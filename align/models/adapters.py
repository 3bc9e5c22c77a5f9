"""Adapters (LoRA, DoRA) from what the recipe says, on plain or on 4-bit weights (QLoRA, Dettmers et al. 2023).

Frozen weights stay in the dtype they were loaded in: `peft.prepare_model_for_kbit_training` would make float32 copies
of embeddings, head and norms, 4 bytes a parameter for values that never change, while norms compute in float32 anyway.
The adapter's own weights are float32 (peft's default), so that small updates are not rounded away. Modules that are
trained whole have the model's dtype, which must then be float32. Gradient checkpointing is the kind that needs no
inputs with gradients (`use_reentrant=False`). bitsandbytes' repacking of 4-bit weights on CPUs, which loses gradients,
is off (`reward.adapter.keep_unpacked`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.recipe.errors import RecipeError
from align.recipe.model_section import LoraSection, ModelSection
from align.runtime.packages import require_package
from align.runtime.peft_model import base_of, is_peft
from data_formats.chat_format import remembered
from reward import adapter
from reward.errors import ModelFileError
from reward.folder import local_folder

logger = logging.getLogger(__name__)


def quantization(model: ModelSection) -> Any:
    """The `quantization_config` of qlora.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    require_package("model.adapter=qlora", "bitsandbytes")
    asked = model.quantization
    return adapter.quantization_4bit(
        getattr(torch, asked.compute_dtype), kind=asked.type, double_quant=asked.double_quant
    )


def add(
    module: nn.Module,
    lora: LoraSection,
    *,
    base: str | Path,
    revision: str | None = None,
    seed: int = 0,
    new_tokens: Sequence[int] = (),
) -> nn.Module:
    """A peft model around `module`, whose weights are frozen; the new adapter changes nothing yet (B is 0).

    Args:
        module: a causal language model, or the body of one (`lm_head` among targets or modules to save is then left
            out).
        base: where `module` was loaded from; a folder is noted with its whole path, so that the adapter is found from
            any working folder.
        revision: of `base`.
        seed: draws A, the same on every rank; the global generator is left alone.
        new_tokens: ids whose embeddings are trained too, with their rows of the head.

    Raises:
        RecipeError: targets or modules to save that the model does not have.
    """
    from peft import get_peft_model

    config = lora_config(module, lora, revision, new_tokens)
    folder = local_folder(base)
    module.name_or_path = str(folder.resolve()) if folder is not None else str(base)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return get_peft_model(module, config).eval()


def lora_config(
    module: nn.Module, lora: LoraSection, revision: str | None = None, new_tokens: Sequence[int] = ()
) -> Any:
    """PEFT's configuration of a new adapter on `module`.

    Raises:
        RecipeError: targets or modules to save that the model does not have.
    """
    from peft import LoraConfig

    has_head = module.get_output_embeddings() is not None
    targets = lora.targets if lora.targets == "all-linear" else list(_within(lora.targets, has_head))
    if not targets:
        sentence = "names the head alone, which a reward model and a critic do not have; name layers below it too"
        raise RecipeError([f"model.lora.targets: {sentence}"])
    whole = list(_within(lora.modules_to_save, has_head))
    _check_names(module, [] if targets == "all-linear" else targets, whole)
    tied = bool(getattr(module.config.get_text_config(), "tie_word_embeddings", False)) and has_head
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        modules_to_save=whole or None,
        ensure_weight_tying=tied and any(name in (adapter.HEAD, "embed_tokens") for name in whole),
        trainable_token_indices=_trained_rows(module, [*targets, *whole], new_tokens, tied=tied),
        task_type="CAUSAL_LM" if has_head else None,
    )
    config.revision = revision
    return config


def _within(names: Sequence[str], has_head: bool) -> Iterable[str]:
    return names if has_head else [name for name in names if name != adapter.HEAD]


def _trained_rows(
    module: nn.Module, named: Sequence[str], new_tokens: Sequence[int], *, tied: bool
) -> dict[str, list[int]] | None:
    """The rows of new tokens, by the names of the layers that hold them (PEFT ties those of a tied head by itself); not
    of a layer that is trained anyway."""
    ends = [module.get_input_embeddings(), None if tied else module.get_output_embeddings()]
    names = [name.rpartition(".")[2] for name, part in module.named_modules() for end in ends if part is end]
    return {name: list(new_tokens) for name in names if name not in named} or None if new_tokens else None


def _check_names(module: nn.Module, targets: list[str], whole: list[str]) -> None:
    modules = [(name, part) for name, part in module.named_modules() if name]
    linear = {name: part for name, part in modules if isinstance(part, nn.Linear | nn.Embedding)}
    weighted = {name: part for name, part in modules if any(True for _ in part.parameters(recurse=False))}
    problems = []
    for key, names, there in (("targets", targets, linear), ("modules_to_save", whole, weighted)):
        for name in names:
            if not any(_named(path, name) for path in there):
                known = ", ".join(sorted({path.rpartition(".")[2] for path in there}))
                problems.append(f"model.lora.{key}: the model has no '{name}'; it has {known}")
    for name in whole:
        if any(_named(path, name) and _is_4bit(part) for path, part in linear.items()):
            sentence = f"model.lora.modules_to_save: '{name}' is stored in 4 bits, which cannot be trained whole"
            problems.append(f"{sentence}; make it one of model.lora.targets")
    if problems:
        raise RecipeError(problems)


def _named(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _is_4bit(part: nn.Module) -> bool:
    return type(getattr(part, "weight", None)).__name__ == "Params4bit"


def fitted(
    module: nn.Module, path: str | Path, model: ModelSection, *, use: str, seed: int, tokenizer: Any = None
) -> nn.Module:
    """`module` (a causal language model or a body, maybe with its saved adapter) as `use` wants it.

    Args:
        use: `train` (an adapter where the recipe has one, else all weights), `frozen`, `merged` (frozen too).
        tokenizer: says which tokens are new; a new adapter trains their embeddings too.

    Raises:
        ModelFileError: an adapter would have to be merged into 4-bit weights.
    """
    has = is_peft(module)
    if has and (use == "merged" or (use == "train" and model.adapter == "none")):
        module = merged(module, path)
    elif use == "train" and model.adapter != "none" and not has:
        revision = model.revision if str(path) == model.path else None
        new = remembered(tokenizer).get("added", ())
        return add(module, model.lora, base=path, revision=revision, seed=seed, new_tokens=new)
    elif use == "train" and has:
        _compare(module, path, model.lora)
        return module
    return module if use == "train" else module.requires_grad_(False)


def _compare(module: nn.Module, path: str | Path, lora: LoraSection) -> None:
    rank = module.peft_config["default"].r
    if rank != lora.rank:
        logger.warning(
            "%s: its adapter of rank %d is trained on, model.lora.rank=%d is not read", path, rank, lora.rank
        )


def merged(module: nn.Module, path: str | Path) -> nn.Module:
    """The base model with the adapter's product added to its weights, all of them trainable again.

    Raises:
        ModelFileError: the base is stored in 4 bits.
    """
    if getattr(module, "is_loaded_in_4bit", False):
        raise ModelFileError(
            f"{path} is an adapter on 4-bit weights, into which it cannot be merged without rounding it away; make a "
            "whole model of it with `align merge` first (--dequantize, or --base)"
        )
    _part_tied_ends(base_of(module))
    return module.merge_and_unload().requires_grad_(True).eval()


def _part_tied_ends(model: nn.Module) -> None:
    """An adapter on the head or on the embedding of a model that ties them makes them differ: each is then given
    weights of its own."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, config = model.get_output_embeddings(), model.config.get_text_config()
    ends = (head, model.get_input_embeddings())
    if head is None or not config.tie_word_embeddings or not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    inner = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    inner.weight = nn.Parameter(inner.weight.detach().clone(), requires_grad=inner.weight.requires_grad)
    config.tie_word_embeddings = False


def save_pretrained(module: nn.Module, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write a causal language model or a reward model: the adapter alone where it has one, else all weights."""
    if is_peft(module):
        adapter.save_body(module, Path(folder), None if state_dict is None else _named_again(module, state_dict))
    else:
        module.save_pretrained(folder, state_dict=state_dict)


def _named_again(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that has shared tensors once, with all of their names, as PEFT looks for them."""
    once = {id(parameter): name for name, parameter in module.named_parameters()}
    shared = ((name, once[id(part)]) for name, part in module.named_parameters(remove_duplicate=False))
    return state | {name: state[first] for name, first in shared if name not in state and first in state}


def trained_share(module: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; a 4-bit one counts as one."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    total = sum(
        math.prod(part.quant_state.shape) if getattr(part, "quant_state", None) is not None else part.numel()
        for part in module.parameters()
    )
    return trained, total
