"""Log-probabilities of given tokens from the states in front of a linear layer, whose logits are never held whole.

Rows are taken by blocks. A block that is trained costs three products: its logits, the gradient of its states, and its
part of the weights' gradient. A fourth, the logits again, is paid only where there are more than a block of them and
their gradient cannot be made in the forward pass. It can

- where the loss is a weighted sum of the log-probabilities with weights known beforehand (one number is missing then,
  the gradient of the sum), the "fused linear cross entropy" of Liger (Hsu et al. 2024, 2410.10989, section 3.2);
- where the weights are frozen: the gradient of a row's states is a vector times the gradient of its log-probability.

Under autocast products are of its dtype, as `F.linear`'s are; what is summed over blocks is summed in float32 at least.
Rows whose incoming gradient (or weight) is exactly 0 give exactly 0, whatever their logits are. Differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from align.functional.logprobs import measured, slope_into, token_entropy, token_logprobs
from align.functional.masked import keep, same_shape, wide

Watch = Callable[[Tensor, slice], None]


@dataclass(frozen=True, slots=True)
class TokenQuestion:
    """What is asked about N rows of logits: answers_NA, in float32 at least, with the columns

    - log-probability of `ids_N` under softmax(logits / temperature), in nats;
    - with `entropy`, that of the distribution, in nats (`learnt`: with a gradient);
    - with `max_z_coef`, the largest of the row's logits, z;
    - with `weights_N`, the sum of weights times log-probabilities in the first row, above zeros. Then this is the only
      column with a gradient; a row without weight is not in the sum, whatever it is. With `max_z_coef`, which wants
      weights, they multiply log-probability - max_z_coef * z^2: the max-z loss of Baichuan 2 (2309.10305).

    Called with the logits of the rows `at`, it answers about these by itself. `watch` is shown all logits, block by
    block (logits_nV, at), before the answers are made of them; it may not change them.
    """

    ids_N: Tensor
    temperature: float = 1.0
    entropy: bool = False
    learnt: bool = True
    weights_N: Tensor | None = None
    watch: Watch | None = None
    max_z_coef: float = 0.0

    def __call__(self, logits_nV: Tensor, at: slice) -> Tensor:
        if self.watch is not None:
            self.watch(logits_nV.detach(), at)
        columns = [token_logprobs(logits_nV, self.ids_N[at], self.temperature)]
        if self.entropy:
            columns.append(token_entropy(logits_nV if self.learnt else logits_nV.detach(), self.temperature))
        if self.max_z_coef:
            columns.append(wide(logits_nV.max(dim=-1).values))
        if self.weights_N is not None:
            total = self.total(columns, self.weights_N[at])
            columns = [column.detach() for column in columns] + [total]
        return torch.stack(columns, dim=-1)

    def total(self, columns: list[Tensor], weights_n: Tensor) -> Tensor:
        """The weighted sum in the first of so many rows."""
        gains_n = keep(columns[0], weights_n)
        if self.max_z_coef:
            gains_n = gains_n - self.max_z_coef * keep(columns[-1], weights_n).square()
        total = (gains_n * weights_n.to(gains_n.dtype)).sum()
        return torch.cat([total[None], torch.zeros_like(gains_n[1:])]) if len(gains_n) else gains_n


def linear_logprobs(
    states_Nd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None, question: TokenQuestion, block_rows: int
) -> Tensor:
    """answers_NA of `question` about the logits states @ weight.T + bias, `block_rows` rows at a time.

    Raises:
        ValueError: not one id, or not one weight, a row; a max-z loss without weights.
    """
    if question.max_z_coef and question.weights_N is None:
        raise ValueError("max_z_coef is a part of the weighted sum, so it wants weights_N")
    same_shape(states_N=states_Nd[:, 0], ids_N=question.ids_N)
    if question.weights_N is not None:
        same_shape(ids_N=question.ids_N, weights_N=question.weights_N)
    device = states_Nd.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_Vd.dtype
    is_learnt = [one is not None and one.requires_grad for one in (states_Nd, weight_Vd, bias_V)]
    learns = is_learnt if torch.is_grad_enabled() else [False] * 3
    with torch.autocast(device, enabled=False):
        columns = _LinearLogprobs.apply(states_Nd, weight_Vd, bias_V, question, block_rows, dtype, learns)
    return torch.stack(columns, dim=-1)


class _LinearLogprobs(Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        asked: TokenQuestion,
        block_rows: int,
        dtype: torch.dtype,
        learns: list[bool],
    ) -> tuple[Tensor, ...]:
        layer = _Layer(states, weight, bias, block_rows, dtype, learns)
        is_sum, learns_entropy = asked.weights_N is not None, asked.entropy and asked.learnt
        is_made = is_sum or not (learns[1] or learns[2] or learns_entropy)
        is_made = is_made and any(learns) and len(layer.blocks) > 1
        columns = [_column(states) for _ in range(1 + asked.entropy + bool(asked.max_z_coef))]
        for at in layer.blocks:
            logits, ids = layer.logits(at), asked.ids_N[at]
            if asked.watch is not None:
                asked.watch(logits, at)
            found = measured(logits, ids, asked.temperature, entropy=asked.entropy)
            for column, part in zip(columns, (part for part in found if part is not None), strict=False):
                column[at] = part
            top = logits.max(dim=-1) if asked.max_z_coef else None
            if top is not None:
                columns[-1][at] = top.values
            if is_made:
                rows = asked.weights_N[at].to(found[0]) if is_sum else torch.ones_like(found[0])
                slope_into(logits, logits, asked.temperature, of_logps=(ids, rows))
                _add_max_z_slope(logits, top, rows, asked.max_z_coef)
                layer.learn(logits, at)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(columns if is_sum else columns[1:] if not asked.learnt else ()))
        ctx.asked, ctx.how, ctx.made, ctx.logits = asked, (block_rows, dtype, learns), None, None
        if any(learns):
            ctx.save_for_backward(states, weight, bias, *columns[1 : 1 + asked.entropy])
            if is_made:
                ctx.made = layer.gradients()
            elif len(layer.blocks) == 1:
                ctx.logits = logits
        return (*columns, asked.total(columns, asked.weights_N)) if is_sum else tuple(columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        asked, rest = ctx.asked, [None] * 4
        (made, ctx.made), (logits, ctx.logits) = (ctx.made, None), (ctx.logits, None)  # a second pass makes them again
        grad_logps, grad_entropy = grads[0], grads[1] if asked.entropy else None
        if asked.weights_N is not None:
            scale, grad_entropy = grads[-1][0], None
            if made is not None:
                return *(None if one is None else one.mul_(scale) for one in made), *rest
            grad_logps = asked.weights_N.to(scale.dtype) * scale
        elif made is not None:
            return made[0].mul_(grad_logps[:, None]).masked_fill_(grad_logps[:, None] == 0, 0.0), None, None, *rest
        states, weight, bias, *entropy = ctx.saved_tensors
        layer = _Layer(states, weight, bias, *ctx.how)
        if grad_logps is None:
            grad_logps = torch.zeros_like(grad_entropy)
        for at in layer.blocks:
            block = layer.logits(at) if logits is None else logits
            more = None if grad_entropy is None else (entropy[0][at], grad_entropy[at])
            top = block.max(dim=-1) if asked.max_z_coef else None
            slope_into(block, block, asked.temperature, of_logps=(asked.ids_N[at], grad_logps[at]), of_entropy=more)
            _add_max_z_slope(block, top, grad_logps[at], asked.max_z_coef)
            layer.learn(block, at)
        return *layer.gradients(), *rest


class _Layer:
    """The products of a linear layer, block by block, in one buffer."""

    def __init__(
        self,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        block_rows: int,
        dtype: torch.dtype,
        learns: list[bool],
    ):
        self.states, self.weight = states.to(dtype), weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        total = len(states)
        self.blocks = [slice(at, min(at + block_rows, total)) for at in range(0, total, block_rows)]
        self.learns, self.buffer = learns, states.new_empty(0)
        self.d_states = torch.empty_like(self.states) if learns[0] else None
        self.d_weight: Tensor | None = None
        self.d_bias: Tensor | None = None

    def logits(self, at: slice) -> Tensor:
        """(n, V), which the next block overwrites."""
        rows = at.stop - at.start
        if len(self.buffer) < rows:
            self.buffer = self.states.new_empty(rows, len(self.weight))
        logits = torch.mm(self.states[at], self.weight.T, out=self.buffer[:rows])
        return logits if self.bias is None else logits.add_(self.bias)

    def learn(self, slope: Tensor, at: slice) -> None:
        """Take in the gradient of a block's logits."""
        states = self.states[at]
        if self.learns[0]:
            torch.mm(slope, self.weight, out=self.d_states[at])
        if self.learns[1]:
            if self.d_weight is not None and self.d_weight.dtype == slope.dtype:
                self.d_weight.addmm_(slope.T, states)
            else:
                self.d_weight = self._added(self.d_weight, slope.T @ states)
        if self.learns[2]:
            self.d_bias = self._added(self.d_bias, slope.sum(0))

    def _added(self, before: Tensor | None, part: Tensor) -> Tensor:
        if before is not None:
            return before.add_(part)
        return part if len(self.blocks) == 1 else wide(part)

    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of states, weight and bias, each where it learns."""
        return self.d_states, self.d_weight, self.d_bias


def _column(states: Tensor) -> Tensor:
    return torch.empty(len(states), dtype=wide(states[:0]).dtype, device=states.device)


def _add_max_z_slope(slope_nV: Tensor, top: Any, grads_n: Tensor, max_z_coef: float) -> None:
    """Add the gradient of -max_z_coef * z^2 times `grads_n` at the largest logits (`top`: values and places)."""
    if top is not None:
        more_n = -2 * max_z_coef * keep(top.values, grads_n) * grads_n
        slope_nV.scatter_add_(-1, top.indices[:, None], more_n.to(slope_nV.dtype)[:, None])
