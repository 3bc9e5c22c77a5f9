"""The training forward: the one way in which log-probabilities and values of replies are computed.

Sampling, old, new and reference log-probabilities of PPO all come from here, so that the ratio of an unchanged policy
is exactly 1. Logits are divided by the sampling temperature and normalised over the whole vocabulary (top-p and top-k
truncate sampling only; see `PPOTrainer`). Logits are computed only from the first reply token of the micro-batch on,
and never held all at once (`align.trainers.head`); `reply_full_kl` holds a block of them, or those of one reply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.functional.logprobs import token_entropy, token_kl, token_logprobs
from align.functional.support import support_logprobs
from align.trainers.head import ask_head, block_rows, unwrapped
from align.trainers.optimization import all_modules
from align.trainers.ppo.types import SupportTensor, TokenBatch


def _on_replies(
    model: nn.Module, batch: TokenBatch, ask: Callable[[Tensor, Tensor, slice], Tensor]
) -> tuple[Tensor, int]:
    """answers_BKA of the K states from the first that has an action in any row, and the number of that state; `ask`
    gets logits_nV, the ids_n drawn from them and where they lie among B * (K + 1) rows (the last state draws none)."""
    first_state = int(batch.prompt_lengths_N.min()) - 1
    rows, width = batch.input_ids_NT.shape
    kept = width - first_state
    ids_N = F.pad(batch.input_ids_NT[:, first_state + 1 :], (0, 1)).flatten()
    inputs = {"input_ids": batch.input_ids_NT, "attention_mask": batch.attention_mask_NT, "logits_to_keep": kept}
    raw = unwrapped(model)
    _, answers_NA = ask_head(model, raw, inputs, rows * kept, lambda logits_nV, at: ask(logits_nV, ids_N[at], at))
    return answers_NA.unflatten(0, (rows, kept))[:, :-1], first_state


def reply_logprobs(model: nn.Module, batch: TokenBatch, temperature: float) -> Tensor:
    """Log-probability of every action.

    Args:
        model: a causal LM; `temperature` divides its logits.

    Returns:
        logps_BS in nats; positions before the first reply token are 0, padded ones arbitrary.
    """
    logps_BK1, first_state = _on_replies(
        model, batch, lambda logits_nV, ids_n, at: token_logprobs(logits_nV, ids_n, temperature)[:, None]
    )
    return F.pad(logps_BK1[..., 0], (first_state, 0))


@dataclass(frozen=True, slots=True)
class ReplyLogprobs:
    """What one pass of a policy says of its replies' tokens; every tensor (B, S), 0 before the first reply token.

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
) -> ReplyLogprobs:
    """`reply_logprobs`, and from the same pass those over a recorded support and the entropy."""
    if support is not None:
        first_state = int(batch.prompt_lengths_N.min()) - 1
        support_NS, mask_NS = (
            F.pad(part_BKS, (0, 0, 0, 1)).flatten(0, 1) for part_BKS in support.from_state(first_state).padded()
        )

    def ask(logits_nV: Tensor, ids_n: Tensor, at: slice) -> Tensor:
        found = [token_logprobs(logits_nV, ids_n, temperature)]
        if support is not None:
            found.append(support_logprobs(logits_nV, ids_n, support_NS[at], mask_NS[at], temperature))
        if entropy:
            found.append(token_entropy(logits_nV, temperature))
        return torch.stack(found, dim=-1)

    answers_BKA, first_state = _on_replies(model, batch, ask)
    placed = [F.pad(answers_BK, (first_state, 0)) for answers_BK in answers_BKA.unbind(-1)]
    return ReplyLogprobs(placed[0], placed[support is not None], placed[-1] if entropy else None)


@torch.no_grad()
def reply_full_kl(model: nn.Module, reference: nn.Module, batch: TokenBatch, temperature: float) -> Tensor:
    """kl_BS: KL(model || reference) of the distribution each action was drawn from, over the whole vocabulary, nats.

    The logits of both models are held for as many replies at once as a block has room for, at least for one.
    """
    kl_BS = torch.zeros(batch.mask_NS.shape, device=batch.input_ids_NT.device)
    widest = batch.input_ids_NT.shape[1] - int(batch.prompt_lengths_N.min()) + 1
    at_once = max(1, block_rows(unwrapped(model)) // widest)
    for rows_B in torch.arange(len(kl_BS), device=kl_BS.device).split(at_once):
        some = batch.rows(rows_B)
        first_state, width = int(some.prompt_lengths_N.min()) - 1, some.input_ids_NT.shape[1]
        inputs = {"input_ids": some.input_ids_NT, "attention_mask": some.attention_mask_NT, "use_cache": False}
        both = [policy(**inputs, logits_to_keep=width - first_state).logits[:, :-1] for policy in (model, reference)]
        kl_BK = token_kl(*both, temperature)
        kl_BS = kl_BS.to(kl_BK.dtype)
        kl_BS[rows_B, first_state : width - 1] = kl_BK
    return kl_BS


def state_values(critic: nn.Module, batch: TokenBatch) -> Tensor:
    """The critic's value of every state that has an action: values_BS."""
    return critic(batch.input_ids_NT, batch.attention_mask_NT)[:, :-1]


def shares_prompts(*models: nn.Module) -> bool:
    """Whether passes of all of these models compute the prompt of neighbours in a group (`TokenBatch.groups_N`) once,
    and no padding."""
    return False


def silence_dropout(module: nn.Module) -> None:
    """Set every dropout of `module` to 0 for good, so that its mode (train or eval) no longer matters."""
    for part in all_modules(module):
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
