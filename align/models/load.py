"""Models by role, from what the recipe says: a new tiny Qwen2, a causal language model, a reward model, a critic.

Native transformers classes and safetensors; code from the hub runs only where the recipe says `trust_remote_code`.
Every model comes back in evaluation mode; trainers call `train()`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.models.critic import Critic
from align.recipe.fields import Architecture, ModelSection
from reward.loading import load_pretrained
from reward.model import RewardModel

logger = logging.getLogger(__name__)


def new_causal_lm(architecture: Architecture, tokenizer: Any, seed: int) -> nn.Module:
    """A `Qwen2ForCausalLM` with random float32 weights; the same seed gives the same weights.

    The vocabulary is the tokenizer's (there is no id that the tokenizer cannot decode, unlike `architecture.vocab_size`
    which is only its target). As in Qwen2.5, the config has no pad token: it would freeze `<|endoftext|>`.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **architecture.model_dump(exclude={"vocab_size"}),
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).eval()


def load_causal_lm(path: str | Path, model: ModelSection, *, attention_dropout: float = 0.0) -> nn.Module:
    """A causal language model from a folder or hub id.

    Args:
        path: folder or hub id.
        model: dtype, attention implementation, gradient checkpointing, revision (used for `model.path` alone) and
            `trust_remote_code`.
        attention_dropout: every attention dropout rate; all other dropout is off.

    Raises:
        MissingFileError: neither a folder nor a model the hub gives.
        ModelFileError: a torn or incomplete folder, or one that holds no causal language model.
    """
    from transformers import AutoModelForCausalLM

    options = load_options(path, model)
    return _checkpointed(
        load_pretrained(AutoModelForCausalLM, path, attention_dropout=attention_dropout, **options), model
    )


def load_reward_model(path: str | Path, model: ModelSection, *, attention_dropout: float = 0.0) -> RewardModel:
    """A reward model to train further: an own one keeps its head (PMP -> RM), any other model gives its body and a new
    head, drawn from the global generator. Arguments and errors as of `load_causal_lm`.
    """
    options = load_options(path, model)
    own = RewardModel.is_saved_at(path, **options)
    make = RewardModel.from_pretrained if own else RewardModel.from_backbone
    loaded = make(path, attention_dropout=attention_dropout, **options)
    if not own and any("SequenceClassification" in name for name in loaded.config.architectures or ()):
        logger.warning("%s is a classifier: training starts from its body, its own head is left behind", path)
    return _checkpointed(loaded, model)


def load_critic(path: str | Path, model: ModelSection, *, attention_dropout: float = 0.0) -> Critic:
    """A critic: an own one keeps its head, any other model (reward model, causal model, foreign classifier) gives its
    body and a zero head. Arguments and errors as of `load_causal_lm`.
    """
    options = load_options(path, model)
    make = Critic.from_pretrained if Critic.is_saved_at(path, **options) else Critic.from_backbone
    return _checkpointed(make(path, attention_dropout=attention_dropout, **options), model)


def load_options(path: str | Path, model: ModelSection) -> dict[str, Any]:
    """What `from_pretrained` is told; the revision belongs to `model.path` and to no other model of the chain."""
    options = {
        "dtype": getattr(torch, model.dtype),
        "attn_implementation": model.attn_implementation,
        "trust_remote_code": model.trust_remote_code,
    }
    if model.revision is not None and str(path) == model.path:
        options["revision"] = model.revision
    return options


def _checkpointed(module: Any, model: ModelSection) -> Any:
    if model.gradient_checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return module
