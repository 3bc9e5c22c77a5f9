"""Log-probability of given tokens, entropy, and KL, from logits; cheap in memory and exact enough to trust a ratio.

Autograd on `log_softmax(logits.float())` would keep one or two copies of (B, T, V) in float32; with a vocabulary of
150,000 those are the largest tensors of the whole run. Here the forward pass works block by block and keeps only the
logits it was given (no copy); the backward pass recomputes the softmax by block and writes it into the gradient.

Rows (tokens) whose incoming gradient is exactly 0 give a gradient of exactly 0, whatever their logits are: NaN at a
masked position stays there. Differentiable once. Logits of -inf (excluded tokens) are allowed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from align.functional.masked import same_shape, wide

_BLOCK_ELEMENTS = {"cpu": 1 << 20}  # measured: a block that stays in the cache
_BLOCK_ELEMENTS_ELSEWHERE = 1 << 26  # 256 MiB in float32: few kernel launches, still little beside the logits


def token_logprobs(logits_BTV: Tensor, ids_BT: Tensor, temperature: float = 1.0) -> Tensor:
    """Natural log of the probability that softmax(logits / temperature) gives to each id.

    The caller shifts: the logits at position t must be the ones that predict `ids_BT[:, t]`. The distribution is the
    full one, never cut to top-p or top-k, so that the same call serves old, new and reference policy.

    Args:
        logits_BTV: any float dtype; a (T, V) without batch is taken too.
        ids_BT: int64, all within the vocabulary (masked positions too: put any valid id there).

    Returns:
        logps_BT, float32 (float64 for float64 logits), in nats.

    Raises:
        ValueError: shapes that do not fit, or a temperature that is not above 0.
    """
    _check(logits_BTV, temperature)
    same_shape(logits_BTV_without_V=logits_BTV[..., 0], ids_BT=ids_BT)
    return _TokenLogprobs.apply(logits_BTV, ids_BT, temperature)


def token_entropy(logits_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature) at each position, over the whole vocabulary, in nats.

    Returns entropy_BT, float32 (float64 for float64 logits), between 0 and log V. Raises as `token_logprobs`.
    """
    _check(logits_BTV, temperature)
    return _TokenEntropy.apply(logits_BTV, temperature)


@torch.no_grad()
def token_kl(logits_BTV: Tensor, ref_logits_BTV: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(logits / temperature) || softmax(ref_logits / temperature)) at each position, summed over the whole
    vocabulary, in nats: the very number that the estimators of `kl_estimate` guess from one sampled token.

    Args:
        logits_BTV, ref_logits_BTV: of one shape; a (T, V) without batch is taken too.

    Returns:
        kl_BT, float32 (float64 for float64 logits), without gradient; infinite where the reference excludes a token
        (logit -inf) that the policy does not.

    Raises:
        ValueError: unequal shapes, no floats, or a temperature that is not above 0.
    """
    _check(logits_BTV, temperature)
    same_shape(logits_BTV=logits_BTV, ref_logits_BTV=ref_logits_BTV)
    kl = _per_row(logits_BTV)
    for at in _blocks(logits_BTV):
        logps = torch.log_softmax(_scaled(logits_BTV[at], temperature), dim=-1)
        ref_logps = torch.log_softmax(_scaled(ref_logits_BTV[at], temperature), dim=-1)
        probs = logps.exp()
        kl[at] = torch.where(probs == 0, 0.0, probs * (logps - ref_logps)).sum(-1)  # 0 * (-inf - -inf) is NaN
    return kl


def _check(logits: Tensor, temperature: float) -> None:
    if logits.dim() not in (2, 3) or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}"
        raise ValueError(f"logits must be floats of shape (B, T, V) or (T, V), found {found}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")


def _blocks(logits: Tensor) -> Iterator[tuple[slice, ...]]:
    """Slices of the leading dimensions that cover all rows with at most so many elements each (or one row)."""
    limit = _BLOCK_ELEMENTS.get(logits.device.type, _BLOCK_ELEMENTS_ELSEWHERE)
    rows = max(1, limit // max(1, logits.shape[-1]))  # how many tokens fit into a block
    if logits.dim() == 2:
        yield from (slice(t, t + rows) for t in range(0, logits.shape[0], rows))  # type: ignore[misc]
        return
    batch, time, _ = logits.shape
    step_b, step_t = max(1, rows // max(1, time)), max(1, min(rows, time))
    yield from (
        (slice(b, b + step_b), slice(t, t + step_t)) for b in range(0, batch, step_b) for t in range(0, time, step_t)
    )


def _scaled(block: Tensor, temperature: float) -> Tensor:
    """The block, widened and divided by the temperature. May be `block` itself: never write into it."""
    return wide(block) if temperature == 1.0 else wide(block) / temperature


def _per_row(logits: Tensor) -> Tensor:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.empty(logits.shape[:-1], dtype=dtype, device=logits.device)


def _unless_zero(row: Tensor, slope: Tensor) -> Tensor:
    """`slope`, and exactly 0 in the rows whose incoming gradient is 0: 0 * NaN would be NaN."""
    return torch.where(row == 0, torch.zeros((), dtype=slope.dtype, device=slope.device), slope)


class _TokenLogprobs(Function):
    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        logps = _per_row(logits)
        for at in _blocks(logits):
            block_logps = torch.log_softmax(_scaled(logits[at], temperature), dim=-1)
            logps[at] = block_logps.gather(-1, ids[at].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(logits, ids)
        ctx.temperature = temperature
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps: Tensor) -> tuple[Tensor, None, None]:
        logits, ids = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for at in _blocks(logits):  # d logp / d logit_v = (1[v = id] - p_v) / temperature
            row = grad_logps[at].unsqueeze(-1)
            slope = torch.softmax(_scaled(logits[at], ctx.temperature), dim=-1).mul_(row / -ctx.temperature)
            slope.scatter_add_(-1, ids[at].unsqueeze(-1), row / ctx.temperature)
            grad[at] = _unless_zero(row, slope)
        return grad, None, None


class _TokenEntropy(Function):
    @staticmethod
    def forward(ctx, logits: Tensor, temperature: float) -> Tensor:
        entropy = _per_row(logits)
        for at in _blocks(logits):
            entropy[at] = torch.special.entr(torch.softmax(_scaled(logits[at], temperature), dim=-1)).sum(-1)
        ctx.save_for_backward(logits, entropy)
        ctx.temperature = temperature
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_entropy: Tensor) -> tuple[Tensor, None]:
        logits, entropy = ctx.saved_tensors
        grad = torch.empty_like(logits)
        for at in _blocks(logits):  # d H / d logit_v = (-p_v log p_v - p_v H) / temperature
            row = grad_entropy[at].unsqueeze(-1)
            probs = torch.softmax(_scaled(logits[at], ctx.temperature), dim=-1)
            slope = torch.special.entr(probs).sub_(probs.mul_(entropy[at].unsqueeze(-1)))
            grad[at] = _unless_zero(row, slope.mul_(row / ctx.temperature))
        return grad, None
