"""Which models the decode loop takes: asked by what they are, and then, once a model, by what they compute.

The loop (`rollouts.decode`) feeds prompts end to end in one row, a cache of its own, and positions, and computes the
attention itself. A model that does something else with its past (a state, a window, another cache), whose angles depend
on how long the batch is, or that comes from remote code stays with `generate`. What no flag says the probe finds: the
loop's logits along `generate`'s own greedy tokens must be `generate`'s.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from align.runtime.padding import pad_left
from align.runtime.peft_model import base_of, is_peft
from rollouts.decode import decode
from rollouts.key_values import cache_keyword
from rollouts.protocol import SamplingParams

TAKEN = ("position_ids", "use_cache", "logits_to_keep")
PROBED = (5, 2, 3)  # tokens of the probe's prompts
DRAWN = 4  # tokens that continue each
REPLIES = 2  # to each prompt: two share what was read
# Share of the largest logit that two ways of computing may differ by. In float32 they differ by 1e-6; a position or a
# key that is left out shows above 1e-3 even in a model of random weights.
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2}
COARSE = 8e-2  # in bfloat16 and what is coarser


def why_not(model: nn.Module) -> str | None:
    """Why `model` cannot be sampled by the decode loop, as far as it can be told without computing; else None."""
    base = base_of(model)
    if not isinstance(base, PreTrainedModel) or type(base).__module__.startswith("transformers_modules"):
        return f"{type(base).__name__} is not a model of transformers' own"
    config = base.config.get_text_config(decoder=True)
    if is_peft(model) and any(adapter.is_prompt_learning for adapter in model.peft_config.values()):
        return "its adapter puts learned tokens before the prompt"
    if base.config.is_encoder_decoder or not getattr(config, "is_causal", True):
        return f"{type(base).__name__} is not a causal language model"
    if type(base).generate is not GenerationMixin.generate:
        return f"{type(base).__name__} has a generate of its own"
    wanted = (*TAKEN, cache_keyword(base))
    missing = [name for name in wanted if name not in inspect.signature(base.forward).parameters]
    if missing:
        return f"{type(base).__name__} does not take {', '.join(missing)}"
    if not base._supports_attention_backend:
        return f"the attention of {type(base).__name__} cannot be replaced"
    if not base._supports_default_dynamic_cache() or base._is_stateful:
        return f"{type(base).__name__} keeps its past in a cache of its own"
    layers = DynamicCache(config=base.config).layers
    if len(layers) != config.num_hidden_layers or any(type(layer) is not DynamicLayer for layer in layers):
        return "some of its layers see a window of the past or keep a state, not all keys and values"
    if {"dynamic", "longrope"} & set(_rope_types(getattr(config, "rope_parameters", None))):
        return "the angles of its positions depend on how long the sequence is"
    return None


@torch.no_grad()
def probe(model: nn.Module, pad_token_id: int) -> str | None:
    """Why the decode loop's logits are not those of `generate`; None where they are. `model` is in evaluation mode.

    Raises:
        FloatingPointError: the logits are not finite, so nothing can be said.
    """
    base = base_of(model)
    vocabulary = base.config.get_text_config(decoder=True).vocab_size
    prompts = [[(37 * length + 11 * at * at + at) % vocabulary for at in range(length)] for length in PROBED]
    quantized = getattr(base, "is_quantized", False)
    exact = base.dtype in (torch.float32, torch.float64) and not quantized
    with torch.autocast(base.device.type, enabled=False) if exact else nullcontext():
        ids_BT, mask_BT = (rows.to(base.device) for rows in pad_left(prompts, pad_token_id))
        config = GenerationConfig(
            max_new_tokens=DRAWN,
            do_sample=False,
            pad_token_id=pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
        out = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config, synced_gpus=False)
        wanted_BTV = torch.stack(out.logits, dim=1).float()
        if not bool(wanted_BTV.isfinite().all()):
            raise FloatingPointError("the model's logits are not finite")
        tokens_BT, found_BTV = out.sequences[:, ids_BT.shape[1] :], torch.zeros_like(wanted_BTV)

        def follow(logits_RV: Tensor, responses_R: Tensor, steps_R: Tensor) -> Tensor:
            found_BTV[responses_R // REPLIES, steps_R] = logits_RV
            return tokens_BT[responses_R // REPLIES, steps_R]

        try:
            decode(model, prompts, SamplingParams(n=REPLIES, max_new_tokens=DRAWN), 2 * REPLIES, follow)
        except Exception as error:  # whatever an unknown model does with what it does not expect
            return f"it fails there ({type(error).__name__}: {error})"
    apart = float((found_BTV - wanted_BTV).abs().max() / wanted_BTV.abs().max())
    if not apart <= (COARSE if quantized else TOLERANCES.get(base.dtype, COARSE)):
        return f"its logits there are {apart:.1%} off those of generate"
    return None


def _rope_types(parameters: object) -> list[str]:
    """Of all layers: a config holds one set of parameters, or one for each kind of layer."""
    if not isinstance(parameters, dict):
        return []
    inside = [kind for each in parameters.values() for kind in _rope_types(each)]
    return [parameters.get("rope_type", "default"), *inside]
