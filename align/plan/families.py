"""What a layer of each model family consists of, as transformers builds it: linear layers, norms, biases.

All are decoders with rotary positions. They differ in which norms there are and over what, in whether queries, keys
and values (and the MLP's two inputs) are one linear layer, in whether the MLP has a gate, in biases, and in whether a
token passes one MLP or a few of many (experts, which transformers keeps as plain weights that 4-bit loading does not
touch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Linear layers that read the same tensor: the layer's input, what attention gives, the MLP's input, its units.
APART = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
FUSED = (("qkv_proj",), ("o_proj",), ("gate_up_proj",), ("down_proj",))
NEOX = (("query_key_value",), ("dense",), ("dense_h_to_4h",), ("dense_4h_to_h",))
SHARED_EXPERT = (*APART[:2], ("gate_proj", "up_proj", "shared_expert_gate"), ("down_proj",))

BOTH = ("input_layernorm", "post_attention_layernorm")
FOUR = (*BOTH, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, slots=True)
class Family:
    """One family.

    Attributes:
        linears: names of a layer's linear layers, in four groups (two where there are only experts).
        norms: names of the norms as wide as the model.
        qk_norm: whether queries and keys are normalised: head by head, or all heads at once.
        layer_norm: norms have biases (LayerNorm) and read the same states, else they only scale (RMSNorm).
        wide_norm: the norm's scale is applied in float32 whatever the model's dtype.
        gated: the MLP multiplies its units by a gate.
        biased: linear layers that have biases whatever the config says.
        attention_bias: what configs mean that do not say.
        tied: likewise of `tie_word_embeddings`.
        head_dim: likewise; None: the width by the heads.
        softcap: likewise of `final_logit_softcapping`.
        moe: every layer has experts.
        adapts_experts: `all-linear` adapters are on experts and router too (PEFT knows them by the family's name).
        ends: names of the token embedding, the LM head and the last norm.
    """

    linears: tuple[tuple[str, ...], ...] = APART
    norms: tuple[str, ...] = BOTH
    qk_norm: Literal["no", "head", "all"] = "no"
    layer_norm: bool = False
    wide_norm: bool = False
    gated: bool = True
    biased: tuple[str, ...] = ()
    attention_bias: bool = False
    tied: bool = False
    head_dim: int | None = None
    softcap: float | None = None
    moe: bool = False
    adapts_experts: bool = False
    ends: tuple[str, str, str] = ("embed_tokens", "lm_head", "norm")


FAMILIES = {  # by a config's `model_type`
    "qwen2": Family(biased=APART[0]),
    "qwen2_moe": Family(SHARED_EXPERT, biased=APART[0], moe=True),
    "qwen3": Family(qk_norm="head", head_dim=128),
    "qwen3_moe": Family(APART[:2], qk_norm="head", moe=True, adapts_experts=True),
    "llama": Family(),
    "mistral": Family(),
    "gemma2": Family(norms=FOUR, wide_norm=True, tied=True, head_dim=256, softcap=30.0),
    "gemma3_text": Family(norms=FOUR, wide_norm=True, qk_norm="head", tied=True, head_dim=256),
    "phi3": Family(FUSED),
    "olmo2": Family(norms=("post_attention_layernorm", "post_feedforward_layernorm"), qk_norm="all", wide_norm=True),
    "smollm3": Family(tied=True),
    "gpt_neox": Family(
        NEOX,
        layer_norm=True,
        gated=False,
        biased=NEOX[2] + NEOX[3],
        attention_bias=True,
        ends=("embed_in", "lm_head", "final_layer_norm"),
    ),
}
