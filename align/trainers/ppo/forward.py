"""The training forward: the one way in which log-probabilities and values of replies are computed.

Sampling, old, new and reference log-probabilities of PPO all come from here, so that the ratio of an unchanged policy
is exactly 1. Logits are divided by the sampling temperature and normalised over the whole vocabulary (top-p and top-k
truncate sampling only; see `PPOTrainer`). A prompt is computed once for all of its replies in a micro-batch, where the
model allows it (`align.trainers.ppo.rows`). Logits are computed only of the states that have an action, and never held
all at once (`align.trainers.head`); `reply_full_kl` holds a block of them, or those of one reply.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from align.functional.linear_logprobs import TokenQuestion, Watch
from align.functional.logprobs import token_kl
from align.functional.support import support_logprobs
from align.runtime.devices import index_on
from align.trainers.causal_forward import ask_at
from align.trainers.head import Question, ask_head, block_rows, head_of, unwrapped
from align.trainers.optimization import all_modules
from align.trainers.ppo.rows import ModelRows
from align.trainers.ppo.types import SupportTensor, TokenBatch
from reward.flat import takes_flat_rows
from reward.last_layer import last_mlp_only_at


def shares_prompts(*models: nn.Module) -> bool:
    """Whether passes of all of these models compute the prompt of several replies in a micro-batch once, and no
    padding. A model is tried when it is first asked about, in three small passes, which ranks that share a sharded
    model make together.

    Args:
        models: unwrapped causal LMs and critics; of the latter those whose forward takes `parts` and `with_states`, as
            `Critic`'s does, can.
    """
    return False not in {_shares_prompts(model) for model in models}


def _shares_prompts(model: nn.Module) -> bool:
    if {"parts", "with_states"} <= inspect.signature(type(model).forward).parameters.keys():
        return takes_flat_rows(model, model.backbone, lambda inputs: model(**inputs, with_states=True)[1])
    if head_of(model) is None:  # somebody's critic
        return False

    def logits(inputs: dict[str, Any]) -> Tensor:
        # backwards, so that a model which gives all of them in any case is found out
        backwards_T = torch.arange(inputs["input_ids"].shape[1], device=model.device).flip(0)
        return model(**inputs, use_cache=False, logits_to_keep=backwards_T).logits.flip(1)

    return takes_flat_rows(model, model, logits)


def _answers(model: nn.Module, rows: ModelRows, ask: Question) -> Tensor:
    """answers_KA; `ask` gets logits_nV and which of the K actions were drawn from them."""
    if "parts" not in rows.inputs:
        return ask_at(model, unwrapped(model), rows.inputs, rows.states_K, ask)[1]
    raw, inputs = unwrapped(model), rows.inputs | {"logits_to_keep": rows.states_K}  # columns of the one row
    with last_mlp_only_at(raw, inputs["input_ids"].shape, rows.states_K):
        return ask_head(model, raw, inputs, len(rows.states_K), ask)[1]


def _rows_for(batch: TokenBatch, *models: nn.Module) -> ModelRows:
    return batch.flat if shares_prompts(*map(unwrapped, models)) else batch.padded


def _on_actions(answers_KA: Tensor, rows: ModelRows, batch: TokenBatch) -> Tensor:
    """answers_BSA, 0 where there is no action, and where a reply is padded."""
    placed_BSA = rows.placed(answers_KA)
    return placed_BSA if batch.reply_room is None else placed_BSA.masked_fill(~batch.mask_NS[..., None], 0.0)


def reply_logprobs(model: nn.Module, batch: TokenBatch, temperature: float) -> Tensor:
    """Log-probability of every action.

    Args:
        model: a causal LM; `temperature` divides its logits.

    Returns:
        logps_BS in nats; 0 where there is no action.
    """
    rows = _rows_for(batch, model)
    return _on_actions(_answers(model, rows, TokenQuestion(rows.ids_K, temperature)), rows, batch)[..., 0]


@dataclass(frozen=True, slots=True)
class ReplyLogprobs:
    """What one pass of a policy says of its replies' tokens; every tensor (B, S), 0 where there is no action.

    Attributes:
        full: log-probability over the whole vocabulary, nats.
        ratio: the same over the sampler's support, where there is one; else `full`.
        entropy: nats, of the whole distribution; None when not asked for.
    """

    full: Tensor
    ratio: Tensor
    entropy: Tensor | None = None


def reply_distribution(
    model: nn.Module,
    batch: TokenBatch,
    temperature: float,
    *,
    support: SupportTensor | None = None,
    entropy: bool = False,
    entropy_gradient: bool = True,
    watch: Watch | None = None,
) -> ReplyLogprobs:
    """`reply_logprobs`, and from the same pass those over a recorded support and the entropy (with a gradient or only
    for the log). `watch` sees the logits that all of it is made of."""
    rows = _rows_for(batch, model)
    question = TokenQuestion(rows.ids_K, temperature, entropy=entropy, learnt=entropy_gradient, watch=watch)
    ids_KC, mask_KC = support.at(rows.places_K).padded() if support is not None else (None, None)

    def with_support(logits_nV: Tensor, at: slice) -> Tensor:
        full_n, *entropy_n = question(logits_nV, at).unbind(-1)
        ratio_n = support_logprobs(logits_nV, rows.ids_K[at], ids_KC[at], mask_KC[at], temperature)
        return torch.stack([full_n, ratio_n, *entropy_n], dim=-1)

    ask = question if support is None else with_support
    placed = _on_actions(_answers(model, rows, ask), rows, batch).unbind(-1)
    return ReplyLogprobs(placed[0], placed[support is not None], placed[-1] if entropy else None)


@torch.no_grad()
def reply_full_kl(model: nn.Module, reference: nn.Module, batch: TokenBatch, temperature: float) -> Tensor:
    """kl_BS: KL(model || reference) of the distribution each action was drawn from, over the whole vocabulary, nats.

    The logits of both models are held for as many replies at once as a block has room for, at least for one.
    """
    kl_BS = torch.zeros(batch.mask_NS.shape, device=batch.input_ids_NT.device)
    both = (model, reference)
    for rows_B in _as_many(batch, block_rows(unwrapped(model))):
        some = batch.rows(rows_B)
        rows = _rows_for(some, *both)
        kl_K = token_kl(*(_answers(policy, rows, lambda logits_nV, _: logits_nV) for policy in both), temperature)
        kl_BS = kl_BS.to(kl_K.dtype)
        kl_BS[index_on(kl_BS.device, rows_B), : some.mask_NS.shape[1]] = rows.placed(kl_K)
    return kl_BS


def _as_many(batch: TokenBatch, most: int) -> Iterator[Tensor]:
    """The rows, in order, as many at once as have `most` actions together, at least one."""
    some, actions = [], 0
    for row, size in enumerate(batch.row_sizes):
        if some and actions + size.reply_length > most:
            yield torch.tensor(some)
            some, actions = [], 0
        some.append(row)
        actions += size.reply_length
    yield torch.tensor(some)


def state_values(critic: nn.Module, batch: TokenBatch) -> Tensor:
    """The critic's value of every state that has an action: values_BS, 0 elsewhere."""
    rows = _rows_for(batch, critic)
    inputs = dict(rows.inputs)
    values_BT = critic(inputs.pop("input_ids"), inputs.pop("attention_mask"), **inputs)
    return _on_actions(values_BT.flatten()[rows.states_K, None], rows, batch)[..., 0]


def silence_dropout(module: nn.Module) -> None:
    """Set every dropout of `module` to 0 for good, so that its mode (train or eval) no longer matters."""
    for part in all_modules(module):
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
