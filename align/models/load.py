"""Models by role, from what the recipe says: a new tiny Qwen2, a causal language model, a reward model, a critic.

Native transformers classes and safetensors; code from the hub runs only where the recipe says `trust_remote_code`.
Every model comes back in evaluation mode; trainers call `train()`. A path may be an adapter's folder; `use` says what
for (`align.models.adapters.fitted`): with `model.adapter` lora or qlora, `train` gives a model of which the adapter
alone is trained, a new one where the path has none.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from align.models import adapters
from align.models.critic import Critic
from align.recipe.model_section import Architecture, ModelSection
from align.runtime.peft_model import base_of
from reward import adapter
from reward.checkpointing import enable_checkpointing
from reward.errors import ModelFileError
from reward.loading import check_vocabulary, load_pretrained
from reward.model import RewardModel

logger = logging.getLogger(__name__)
Use = Literal["train", "frozen", "merged"]


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


def load_causal_lm(
    path: str | Path,
    model: ModelSection,
    *,
    tokenizer: Any = None,
    attention_dropout: float = 0.0,
    use: Use = "train",
    seed: int = 0,
) -> nn.Module:
    """A causal language model from a folder or hub id.

    Args:
        path: folder or hub id, of a model or of an adapter.
        model: dtype, attention implementation, gradient checkpointing, revision (used for `model.path` alone),
            `trust_remote_code`, adapter and quantisation.
        tokenizer: what the model is to read; it must have an embedding for every token.
        attention_dropout: every attention dropout rate; all other dropout is off.
        use: what for, see the module's head.
        seed: draws a new adapter.

    Raises:
        MissingFileError: neither a folder nor a model the hub gives.
        ModelFileError: a torn or incomplete folder, one that holds no causal language model, or one with a NormHead.
        VocabularyError: the tokenizer has more tokens than the model embeddings.
        RecipeError: adapter targets that the model does not have.
        MissingPackageError: qlora without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM

    options = load_options(path, model) | {"attention_dropout": attention_dropout}
    if adapter.is_saved_at(path, **options):
        loaded = adapter.load_body(path, auto_class=AutoModelForCausalLM, trainable=use == "train", **options)
    else:
        loaded = load_pretrained(AutoModelForCausalLM, path, **options)
        adapter.keep_unpacked(loaded)
    _refuse_normalised_head(loaded, path)
    _check_tokenizer(loaded, tokenizer, path)
    return _checkpointed(adapters.fitted(loaded, path, model, use=use, seed=seed, tokenizer=tokenizer), model)


def load_saved(path: str | Path, tokenizer: Any) -> nn.Module:
    """A causal language model as it was saved (dtype, adapter, quantisation), frozen, to be sampled from without a
    recipe. Arguments and errors as of `load_causal_lm`.
    """
    from transformers import AutoModelForCausalLM

    if adapter.is_saved_at(path):
        loaded = adapter.load_body(path, auto_class=AutoModelForCausalLM, trainable=False, dtype="auto")
    else:
        loaded = load_pretrained(AutoModelForCausalLM, path)
    _refuse_normalised_head(loaded, path)
    _check_tokenizer(loaded, tokenizer, path)
    return loaded.requires_grad_(False).eval()


def load_reward_model(
    path: str | Path,
    model: ModelSection,
    *,
    tokenizer: Any = None,
    attention_dropout: float = 0.0,
    use: Use = "train",
    seed: int = 0,
) -> RewardModel:
    """A reward model: an own one keeps its head (PMP -> RM), any other model gives its body and a new head, drawn from
    the global generator. Arguments and errors as of `load_causal_lm`; the head is trained beside an adapter.
    """
    options = load_options(path, model)
    own = RewardModel.is_saved_at(path, **options)
    make = RewardModel.from_pretrained if own else RewardModel.from_backbone
    loaded = make(path, attention_dropout=attention_dropout, **options)
    if not own and "SequenceClassification" in str(loaded.config.architectures):  # of any type, where it is damaged
        logger.warning("%s is a classifier: training starts from its body, its own head is left behind", path)
    _check_tokenizer(loaded, tokenizer, path)
    return _checkpointed(_headed(loaded, path, model, use, seed, tokenizer), model)


def load_critic(
    path: str | Path,
    model: ModelSection,
    *,
    tokenizer: Any = None,
    attention_dropout: float = 0.0,
    use: Use = "train",
    seed: int = 0,
) -> Critic:
    """A critic: an own one keeps its head, any other model (reward model, causal model, foreign classifier) gives its
    body and a zero head. Arguments and errors as of `load_causal_lm`; the head is trained beside an adapter.
    """
    options = load_options(path, model)
    make = Critic.from_pretrained if Critic.is_saved_at(path, **options) else Critic.from_backbone
    loaded = make(path, attention_dropout=attention_dropout, **options)
    _check_tokenizer(loaded, tokenizer, path)
    return _checkpointed(_headed(loaded, path, model, use, seed, tokenizer), model)


def _refuse_normalised_head(loaded: Any, path: str | Path) -> None:
    if type(base_of(loaded).get_output_embeddings()).__name__ == "NormHead":
        raise ModelFileError(
            f"{path}: its output embeddings are a NormHead (Baichuan 2), which divides every row by its norm when it "
            "is called, and in evaluation overwrites its weights with the quotient: what is trained, merged, averaged "
            "and given to an engine would not be what computes. Save the divided rows as the weights of a plain linear "
            "lm_head, in a Llama, and start from that"
        )


def _check_tokenizer(loaded: Any, tokenizer: Any, path: str | Path) -> None:
    if tokenizer is not None:
        check_vocabulary(loaded, tokenizer, path)


def _headed(loaded: Any, path: str | Path, model: ModelSection, use: Use, seed: int, tokenizer: Any) -> Any:
    options = {"use": use, "seed": seed, "tokenizer": tokenizer}
    loaded.backbone = adapters.fitted(loaded.backbone, path, model, **options)
    return loaded if use == "train" else loaded.requires_grad_(False)


def load_options(path: str | Path, model: ModelSection) -> dict[str, Any]:
    """What `from_pretrained` is told; the revision belongs to `model.path` and to no other model of the chain. An
    adapter's folder says itself how its base is quantised.
    """
    options: dict[str, Any] = {
        "dtype": getattr(torch, model.dtype),
        "attn_implementation": model.attn_implementation,
        "trust_remote_code": model.trust_remote_code,
    }
    if model.revision is not None and str(path) == model.path:
        options["revision"] = model.revision
    if model.adapter == "qlora" and not adapter.is_saved_at(path, **options):
        options["quantization_config"] = adapters.quantization(model)
    return options


def _checkpointed(module: Any, model: ModelSection) -> Any:
    if model.gradient_checkpointing:
        enable_checkpointing(module)
    return module
