"""The training forward: the one way in which log-probabilities and values of replies are computed.

Sampling, old, new and reference log-probabilities of PPO all come from here, so that the ratio of an unchanged policy
is exactly 1. Logits are divided by the sampling temperature and normalised over the whole vocabulary (top-p and top-k
truncate sampling only; see `PPOTrainer`). Logits are computed only from the first reply token of the micro-batch on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.functional.logprobs import token_entropy, token_logprobs
from align.trainers.experience import TokenBatch


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


@torch.no_grad()
def reply_logprobs_and_entropy(model: nn.Module, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """`reply_logprobs` and the entropy (nats) of the distribution each action was drawn from; both (B, S)."""
    logits_BKV, first_state = _reply_logits(model, batch)
    logps_BK = token_logprobs(logits_BKV, batch.input_ids_NT[:, first_state + 1 :], temperature)
    entropy_BK = token_entropy(logits_BKV, temperature)
    return F.pad(logps_BK, (first_state, 0)), F.pad(entropy_BK, (first_state, 0))


def state_values(critic: nn.Module, batch: TokenBatch) -> Tensor:
    """The critic's value of every state that has an action: values_BS."""
    return critic(batch.input_ids_NT, batch.attention_mask_NT)[:, :-1]


def silence_dropout(module: nn.Module) -> None:
    """Set every dropout of `module` to 0 for good, so that its mode (train or eval) no longer matters."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
