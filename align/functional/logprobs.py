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


def measured(
    logits: Tensor, ids: Tensor | None, temperature: float, *, entropy: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """(`token_logprobs` of the ids, `token_entropy`), each where it is asked for; without gradients."""
    logps, entropies = (_per_row(logits) if wanted else None for wanted in (ids is not None, entropy))
    for at in _blocks(logits):
        block_logps = torch.log_softmax(_scaled(logits[at], temperature), dim=-1)
        if logps is not None:
            logps[at] = block_logps.gather(-1, ids[at].unsqueeze(-1)).squeeze(-1)
        if entropies is not None:
            entropies[at] = -_finite(block_logps).exp().mul_(block_logps).sum(-1)
    return logps, entropies


def slope_into(
    out: Tensor,
    logits: Tensor,
    temperature: float,
    *,
    of_logps: tuple[Tensor, Tensor] | None = None,
    of_entropy: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write the gradient of the logits.

    Args:
        out: shape and dtype of the logits; may be the logits themselves.
        of_logps: the ids and the incoming gradient of their log-probabilities.
        of_entropy: the entropy and its incoming gradient.
    """
    for at in _blocks(logits):
        scaled = _scaled(logits[at], temperature)
        ids, row = (None, 0.0) if of_logps is None else (of_logps[0][at], of_logps[1][at].unsqueeze(-1))
        if of_entropy is None:  # d logp / d logit_v = (1[v = id] - p_v) / temperature
            probs, factor, is_idle = torch.softmax(scaled, dim=-1), row / -temperature, row == 0
        else:  # and d H / d logit_v = -p_v (log p_v + H) / temperature
            entropy, more = (part[at].unsqueeze(-1) for part in of_entropy)
            logps, is_idle = torch.log_softmax(scaled, dim=-1), (more == 0) & (row == 0)
            factor = _finite(logps).add(entropy).mul_(more).add_(row).div_(-temperature)
            probs = logps.exp_()
        target = torch.mul(probs, factor, out=out[at] if out.dtype == probs.dtype else probs)
        if ids is not None:
            target.scatter_add_(-1, ids.unsqueeze(-1), row / temperature)
        if out.device.type != "cpu" or bool(is_idle.any()):  # 0 * NaN would be NaN
            target.masked_fill_(is_idle, 0.0)
        if target.dtype != out.dtype:
            out[at] = target


def _finite(logps: Tensor) -> Tensor:
    """The block itself with -inf (excluded tokens) raised to what 0 can be multiplied by."""
    return logps.clamp_(min=torch.finfo(logps.dtype).min)


class _TokenLogprobs(Function):
    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, ids)
        ctx.temperature = temperature
        return measured(logits, ids, temperature)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps: Tensor) -> tuple[Tensor, None, None]:
        logits, ids = ctx.saved_tensors
        grad = torch.empty_like(logits)
        slope_into(grad, logits, ctx.temperature, of_logps=(ids, grad_logps))
        return grad, None, None


class _TokenEntropy(Function):
    @staticmethod
    def forward(ctx, logits: Tensor, temperature: float) -> Tensor:
        _, entropy = measured(logits, None, temperature, entropy=True)
        ctx.save_for_backward(logits, entropy)
        ctx.temperature = temperature
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_entropy: Tensor) -> tuple[Tensor, None]:
        logits, entropy = ctx.saved_tensors
        grad = torch.empty_like(logits)
        slope_into(grad, logits, ctx.temperature, of_entropy=(entropy, grad_entropy))
        return grad, None
