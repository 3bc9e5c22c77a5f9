"""Statistics over the positions that count.

Departs from the usual `(x * mask).sum() / mask.sum()`: masked values are *replaced*, not multiplied by 0, because
0 * NaN is NaN, in the value and in the gradient. Variance is the population variance (divided by the count), as in
"The N Implementation Details of RLHF with PPO" (Huang et al. 2023), policy detail 9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def same_shape(**tensors: Tensor) -> None:
    """Raises ValueError unless all tensors have one shape; the message names each."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"these must have one shape, found {found}")


def wide(x: Tensor) -> Tensor:
    """`x` in float64 when it is that, else in float32."""
    return x if x.dtype == torch.float64 else x.float()


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """`x` (widened) where the mask counts, 0 elsewhere; no gradient reaches the masked positions.

    Apply it to every input *before* any arithmetic: a NaN made by a later operation would still poison the gradient.
    """
    same_shape(x=x, mask=mask)
    x = wide(x)
    return torch.where(mask != 0, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `x` where `mask` counts, over everything or over `dim`. Raises ValueError on unequal shapes."""
    kept = keep(x, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def _count(mask: Tensor, dim: int | None, like: Tensor) -> Tensor:
    counts = mask != 0
    return (counts.sum() if dim is None else counts.sum(dim)).to(like.dtype)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `x` where `mask` counts; 0 where nothing does."""
    total = masked_sum(x, mask, dim)
    return total / _count(mask, dim, total).clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Population variance of `x` where `mask` counts, in two passes; 0 where nothing does."""
    mean = masked_mean(x, mask, dim)
    centred = keep(x, mask) - (mean if dim is None else mean.unsqueeze(dim))
    return masked_mean(centred.square(), mask, dim)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, sum and sum of squares in float64: what must travel between ranks to know a global mean and variance.

    Attributes:
        count, total, total_sq: 0-dimensional float64 tensors, without gradient.

    Parts add up: `Moments.of(a, mask_a) + Moments.of(b, mask_b)` are the moments of both. Over ranks:
    `Moments.of(x, mask).reduced(lambda t: accelerator.reduce(t, "sum"))`.
    """

    count: Tensor
    total: Tensor
    total_sq: Tensor

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Moments of `x` where `mask` counts (everywhere when there is no mask)."""
        mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        kept = keep(x.detach(), mask).double()
        return cls((mask != 0).sum().double(), kept.sum(), kept.square().sum())

    @classmethod
    def from_tensor(cls, packed: Tensor) -> Moments:
        """The inverse of `as_tensor`."""
        return cls(*packed.double().unbind())

    def as_tensor(self) -> Tensor:
        """`[count, total, total_sq]`, float64, for one all-reduce."""
        return torch.stack((self.count, self.total, self.total_sq))

    def reduced(self, all_reduce_sum: Callable[[Tensor], Tensor]) -> Moments:
        """The moments over all ranks; `all_reduce_sum` takes a tensor and returns its sum over ranks."""
        return Moments.from_tensor(all_reduce_sum(self.as_tensor()))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.total_sq + other.total_sq)

    @property
    def mean(self) -> Tensor:
        """0-dimensional float64; 0 when nothing was counted."""
        return self.total / self.count.clamp(min=1)

    @property
    def var(self) -> Tensor:
        """Population variance, never negative; 0 when nothing was counted."""
        return (self.total_sq / self.count.clamp(min=1) - self.mean.square()).clamp(min=0)


def whiten(
    x: Tensor, mask: Tensor, mean: Tensor | float, var: Tensor | float, shift_mean: bool = True, eps: float = 1e-8
) -> Tensor:
    """`(x - mean) / sqrt(var + eps)` where `mask` counts, 0 elsewhere.

    `mean` and `var` come from outside (`Moments`), so that they can be those of all ranks, not of one batch.
    With `shift_mean=False` the mean is added back after scaling (reward whitening, Huang et al. 2023, policy detail 9).
    """
    kept = keep(x, mask)
    mean = torch.as_tensor(mean, device=kept.device, dtype=torch.float64)
    scale = torch.as_tensor(var, device=kept.device, dtype=torch.float64).add(eps).rsqrt()
    white = (kept - mean) * scale
    return keep(white if shift_mean else white + mean, mask)


def explained_variance(squared_error_sum: Tensor | float, returns: Moments) -> float:
    """`1 - mean squared error / variance of the returns`: 1 perfect, 0 as good as the mean, below 0 worse.

    0 when the returns do not vary, where it is undefined.
    """
    spread = float(returns.var * returns.count)
    return 1.0 - float(squared_error_sum) / spread if spread > 0 else 0.0
