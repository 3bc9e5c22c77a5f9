"""The training forward: the one way in which log-probabilities and values of replies are computed.

Sampling, old, new and reference log-probabilities of PPO all come from here, so that the ratio of an unchanged policy
is exactly 1. Logits are divided by the sampling temperature and normalised over the whole vocabulary (top-p and top-k
truncate sampling only; see `PPOTrainer`). Logits are computed only from the first reply token of the micro-batch on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.functional.logprobs import token_entropy, token_kl, token_logprobs
from align.functional.support import support_logprobs
from align.trainers.experience import TokenBatch
from align.trainers.support import SupportTensor


def _reply_logits(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, int]:
    first_state = int(batch.prompt_lengths_N.min()) - 1
    width = batch.input_ids_NT.shape[1]
    output = model(
        input_ids=batch.input_ids_NT,
        attention_mask=batch.attention_mask_NT,
        logits_to_keep=width - first_state,
        use_cache=False,
    )
    return output.logits[:, :-1], first_state


def reply_logprobs(model: nn.Module, batch: TokenBatch, temperature: float) -> Tensor:
    """Log-probability of every action.

    Args:
        model: a causal LM; `temperature` divides its logits.

    Returns:
        logps_BS in nats; positions before the first reply token are 0, padded ones arbitrary.
    """
    logits_BKV, first_state = _reply_logits(model, batch)
    logps_BK = token_logprobs(logits_BKV, batch.input_ids_NT[:, first_state + 1 :], temperature)
    return F.pad(logps_BK, (first_state, 0))


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
    logits_BKV, first_state = _reply_logits(model, batch)
    ids_BK = batch.input_ids_NT[:, first_state + 1 :]

    def placed(of_states_BK: Tensor) -> Tensor:
        return F.pad(of_states_BK, (first_state, 0))

    full_BS = placed(token_logprobs(logits_BKV, ids_BK, temperature))
    ratio_BS = full_BS
    if support is not None:
        support_BKS, mask_BKS = support.from_state(first_state).padded()
        ratio_BS = placed(support_logprobs(logits_BKV, ids_BK, support_BKS, mask_BKS, temperature))
    return ReplyLogprobs(full_BS, ratio_BS, placed(token_entropy(logits_BKV, temperature)) if entropy else None)


@torch.no_grad()
def reply_full_kl(model: nn.Module, reference: nn.Module, batch: TokenBatch, temperature: float) -> Tensor:
    """kl_BS: KL(model || reference) of the distribution each action was drawn from, over the whole vocabulary, nats.

    Holds the logits of both at once, as a training step holds logits and their gradient.
    """
    logits_BKV, first_state = _reply_logits(model, batch)
    ref_logits_BKV, _ = _reply_logits(reference, batch)
    return F.pad(token_kl(logits_BKV, ref_logits_BKV, temperature), (first_state, 0))


def state_values(critic: nn.Module, batch: TokenBatch) -> Tensor:
    """The critic's value of every state that has an action: values_BS."""
    return critic(batch.input_ids_NT, batch.attention_mask_NT)[:, :-1]


def silence_dropout(module: nn.Module) -> None:
    """Set every dropout of `module` to 0 for good, so that its mode (train or eval) no longer matters."""
    for part in _all_modules(module):
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def _all_modules(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.modules():
        yield part
        if hasattr(part, "get_base_model"):  # a role of a shared backbone does not hold what it computes with
            yield from part.get_base_model().modules()
