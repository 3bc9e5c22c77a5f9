"""The one place that dresses a model for saving, whatever its kind: a language model with all its weights, an adapter,
a merged one, an average; a reward model or critic.

A model leaves with what it was trained to end at: `config` and `generation_config` name the tokens that stop a reply
(of ChatML `<|im_end|>` and, after a document, `<|endoftext|>`), so that plain `generate`, pipelines and servers stop.
The pad token goes into `generation_config` alone: in a language model's config it would freeze that token's embedding
in later training (as in Qwen2.5, whose configs have none). transformers refuses to write a configuration that
contradicts itself (`do_sample: false` beside a `temperature`: Llama-2-chat, Vicuna); what contradicts is left out, with
a warning.

Beside an adapter lies the same `generation_config.json`. Loaders take the base model's (`AutoPeftModelForCausalLM`,
pipelines), so they are told: `generate(..., generation_config=GenerationConfig.from_pretrained(folder))`, vLLM
`--generation-config folder`; a merged model needs no telling.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from align.models.adapters import save_pretrained
from align.runtime.peft_model import base_of, is_peft
from data_formats.chat_format import chat_format, remember, remembered
from reward.headed import HeadedModel
from reward.loading import quiet
from reward.model import RewardModel

logger = logging.getLogger(__name__)
FIRST = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")  # what the others must agree with


def save_model(
    module: nn.Module,
    tokenizer: Any,
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    *,
    still_new: bool = False,
) -> None:
    """Write the dressed model (of one with an adapter that alone) and its tokenizer.

    Args:
        module: a causal language model, one role of a shared backbone, a reward model or a critic.
        tokenizer: None: another writes it.
        state_dict: the gathered state where the parameters are sharded.
        still_new: tokens that were added to the tokenizer have embeddings that nothing has trained; in a model that was
            trained whole they are like any others.
    """
    if tokenizer is not None:
        dress(module, tokenizer)
    with quiet():
        save_pretrained(module, folder, state_dict)
    shipped = getattr(_plain(module), "generation_config", None)
    if is_peft(module) and shipped is not None:
        shipped.save_pretrained(folder)
    if tokenizer is not None:
        scores, still_new = isinstance(module, RewardModel), still_new or is_peft(_body(module))
        _save_tokenizer(tokenizer, folder, scores=scores, still_new=still_new)


def _save_tokenizer(tokenizer: Any, folder: str | Path, *, scores: bool, still_new: bool) -> None:
    template, said = tokenizer.chat_template, remembered(tokenizer)
    if said.get("added") and not still_new:
        remember(tokenizer, said["template"])
    if scores and isinstance(template, str):
        tokenizer.chat_template = chat_format(tokenizer).scoring_template
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = template
        if said:
            remember(tokenizer, **said)


def dress(module: nn.Module, tokenizer: Any) -> None:
    """Give a model's configurations the tokens it ends at, and leave out what transformers would refuse to write.

    A tokenizer without its format's end token (of another's adapter that is merged) leaves the tokens as they are, and
    a module without a configuration has nothing to be dressed in.
    """
    model = _plain(module)
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        return
    speaker = chat_format(tokenizer)
    ends = list(speaker.stop_ids) if tokenizer.get_added_vocab().keys() >= {*speaker.stops} else None
    generation = getattr(model, "generation_config", None)
    moved = {}
    for config in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
        moved |= _taken_out(config)
        if ends is not None:
            config.eos_token_id = ends
            if isinstance(module, RewardModel):  # transformers' classifier tells padding by it
                config.pad_token_id = tokenizer.convert_tokens_to_ids(speaker.padding) if speaker.padding else None
    if generation is None:
        return
    for key, value in moved.items():
        if getattr(generation, key, None) is None:
            setattr(generation, key, value)
    if ends is not None:
        generation.eos_token_id, generation.pad_token_id = ends, tokenizer.pad_token_id
    model.generation_config = consistent(generation, model.name_or_path)


def consistent(generation: Any, name: str = "") -> Any:
    """`generation` itself where transformers would write it, else a copy without the values that contradict others.

    What is left out had no effect (a temperature without sampling), or made every call fail.
    """
    if _is_valid(generation):
        return generation
    kept, left_out = type(generation)(), []
    values = generation.to_diff_dict()
    for key in sorted(values, key=lambda key: key not in FIRST):
        before = getattr(kept, key, None)
        setattr(kept, key, copy.deepcopy(values[key]))
        if not _is_valid(kept):
            setattr(kept, key, before)
            left_out.append(f"{key}={values[key]!r}")
    logger.warning(
        "%s: its generation_config contradicts itself, so it is saved without %s", name or "model", ", ".join(left_out)
    )
    return kept


def _is_valid(generation: Any) -> bool:
    try:
        generation.validate(strict=True)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _taken_out(config: Any) -> dict[str, Any]:
    """Parameters of generation that stand in a model's config, from which they are removed: transformers writes none
    there."""
    found = config._get_generation_parameters()
    for key in found:
        delattr(config, key)
    return found


def _body(module: nn.Module) -> nn.Module:
    """What is inside a head."""
    return module.backbone if isinstance(module, HeadedModel) else module


def _plain(module: nn.Module) -> Any:
    """The transformers model inside a head or an adapter."""
    return base_of(_body(module))
