"""Drawing the next token: temperature, top-k, top-p, exact, fast, from random numbers of our own.

`draw` is a plain function of logits and uniform numbers, for the decode loop and for transformers' `generate` alike. It
departs from the logits processors of that library in three ways:

- each response has its own row of uniform numbers, drawn beforehand from one seed, so what it becomes depends neither
  on the batch it was put into, nor on when others finish, nor on the global generator, which is not touched;
- the nucleus is looked for among the few largest probabilities first, then among those that can be in it; the
  vocabulary is not sorted in full (on a CPU that costs many times a small model's step);
- of the (B, V) scores only three things are kept: the log-probability of the drawn token under the truncated,
  renormalised distribution, the share of the full distribution's mass that truncation left, and, when asked for, the
  ids that could be drawn.

Order as in transformers and vLLM: temperature, then top-k, then top-p over what top-k left. The nucleus is the smallest
set of most probable tokens whose mass reaches `top_p` (Holtzman et al. 2020, "The Curious Case of Neural Text
Degeneration", section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams

_FIRST_LOOK = 64  # candidates looked at before it is counted how many there can be
_BLOCK = 128  # neighbours that a large vocabulary is summed by

Choose = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Gives tokens_R for (logits_RV float32, its own to change; responses_R; steps_R), and keeps them."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One token a row.

    Attributes:
        tokens_B: int64.
        logprobs_B: nats, under the distribution drawn from; 0 for greedy ones.
        sound_B: whether the logits were finite; where not, nothing else means anything.
        kept_mass_B: float64, share of the full distribution's mass in the support; None for greedy ones.
        support: ids that could be drawn, of all rows in one, and how many are whose; None unless asked for.
    """

    tokens_B: Tensor
    logprobs_B: Tensor
    sound_B: Tensor
    kept_mass_B: Tensor | None = None
    support: tuple[Tensor, Tensor] | None = None


def draw(logits_BV: Tensor, uniforms_B: Tensor, params: SamplingParams, held_back_B: Tensor | None = None) -> Draw:
    """Draws one token a row.

    Args:
        logits_BV: raw float32 logits, changed in place.
        uniforms_B: float64 in [0, 1); not read by temperature 0.
        held_back_B: bool, rows whose stop tokens must not be drawn; None: no row's.
    """
    stops = list(params.stop_token_ids) if held_back_B is not None else []
    if params.temperature not in (0, 1):
        logits_BV.div_(params.temperature)
    log_full_B = logits_BV.logsumexp(-1) if stops and params.temperature else None
    if stops:
        logits_BV[:, stops] = logits_BV[:, stops].masked_fill(held_back_B[:, None], -torch.inf)
    if params.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        sound_B = logits_BV.gather(-1, tokens_B[:, None])[:, 0].isfinite()
        return Draw(tokens_B, torch.zeros_like(tokens_B, dtype=torch.float32), sound_B)
    log_allowed_B = logits_BV.logsumexp(-1) if stops else None
    weights_BK, ids_BK = _candidates(logits_BV.softmax(-1), params)
    at_B1, total_B1 = _invert(weights_BK, uniforms_B[:, None])
    tokens_B1 = at_B1 if ids_BK is None else ids_BK.gather(-1, at_B1)
    logprobs_B1 = (weights_BK.gather(-1, at_B1) / total_B1).log()
    kept_B = torch.ones_like(total_B1[:, 0]) if ids_BK is None else total_B1[:, 0]
    if stops:
        kept_B = torch.where(held_back_B, kept_B * (log_allowed_B - log_full_B).double().exp(), kept_B)
    support = None
    if params.return_support:
        drawable_BK = weights_BK > 0
        ids = drawable_BK.nonzero()[:, 1] if ids_BK is None else ids_BK[drawable_BK]
        support = ids.int(), drawable_BK.sum(-1)
    tiny = torch.finfo(torch.float64).tiny  # never 0: its logarithm is taken
    return Draw(tokens_B1[:, 0], logprobs_B1[:, 0].float(), total_B1[:, 0].isfinite(), kept_B.clamp(tiny, 1.0), support)


def _candidates(weights_BV: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """weights_BK of the tokens that may be drawn, as shares of the whole mass, and their ids; None: all of them."""
    vocabulary = weights_BV.shape[-1]
    top_k = min(params.top_k or vocabulary, vocabulary)
    if top_k < vocabulary:
        weights_BK, ids_BK = _largest(weights_BV, top_k)
        reached_B1 = params.top_p * weights_BK.sum(-1, keepdim=True)
        return _nucleus(weights_BK, reached_B1) if params.top_p < 1 else weights_BK, ids_BK
    if params.top_p >= 1:
        return weights_BV, None
    if vocabulary > _FIRST_LOOK:
        weights_BK, ids_BK = _largest(weights_BV, _FIRST_LOOK)
        if bool((weights_BK.sum(-1) >= params.top_p).all()):
            return _nucleus(weights_BK, params.top_p), ids_BK
    # All that weigh less than this weigh less than what the nucleus leaves out, together.
    possible_B = (weights_BV >= (1 - params.top_p) / vocabulary).sum(-1)
    weights_BK, ids_BK = _largest(weights_BV, max(int(possible_B.max()), 1))
    return _nucleus(weights_BK, params.top_p), ids_BK


def _nucleus(weights_BK: Tensor, mass: Tensor | float) -> Tensor:
    """Zeroes what lies outside the nucleus of that mass; weights come in descending order."""
    before_BK = weights_BK.cumsum(-1) - weights_BK
    return weights_BK.masked_fill_(before_BK >= mass, 0.0)


def _largest(weights_BV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk`, descending. In a large vocabulary only the blocks with the largest maxima are looked through: no other
    can hold one of the `count` largest."""
    rows, vocabulary = weights_BV.shape
    blocks = vocabulary // _BLOCK
    if blocks < 4 * count:
        return weights_BV.topk(count)
    blocked_BNK = weights_BV[:, : blocks * _BLOCK].unflatten(-1, (blocks, _BLOCK))
    chosen_BC = blocked_BNK.amax(-1).topk(count, sorted=False).indices
    columns = torch.arange(vocabulary, device=weights_BV.device)
    ids_BK = (chosen_BC[..., None] * _BLOCK + columns[:_BLOCK]).flatten(1)
    ids_BK = torch.cat([ids_BK, columns[blocks * _BLOCK :].expand(rows, -1)], dim=-1)
    values_BC, at_BC = weights_BV.gather(-1, ids_BK).topk(count)
    return values_BC, ids_BK.gather(-1, at_BC)


def _invert(weights_BK: Tensor, uniforms_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The first index whose summed weight exceeds its uniform number's share of the total, and that total (float64).

    An index of weight 0 can never be it, as uniform numbers are below 1. Many weights are summed by blocks, so that
    only one block a row is summed up in float64.
    """
    count = weights_BK.shape[-1]
    blocks = count // _BLOCK
    if blocks < _BLOCK:
        mass_BK = weights_BK.cumsum(-1, dtype=torch.float64)
        total_B1 = mass_BK[:, -1:]
        return _first_above(mass_BK, uniforms_B1 * total_B1), total_B1
    whole = blocks * _BLOCK
    sums_BN = weights_BK[:, :whole].unflatten(-1, (blocks, _BLOCK)).sum(-1)
    if whole < count:
        sums_BN = torch.cat([sums_BN, weights_BK[:, whole:].sum(-1, keepdim=True)], dim=-1)
    mass_BN = sums_BN.cumsum(-1, dtype=torch.float64)
    total_B1 = mass_BN[:, -1:]
    wanted_B1 = uniforms_B1 * total_B1
    block_B1 = _first_above(mass_BN, wanted_B1)
    sum_B1 = sums_BN.gather(-1, block_B1).double()
    share_B1 = (wanted_B1 - (mass_BN.gather(-1, block_B1) - sum_B1)) / sum_B1  # of the block's own mass
    columns_BK = block_B1 * _BLOCK + torch.arange(_BLOCK, device=weights_BK.device)
    inside_BK = weights_BK.gather(-1, columns_BK.clamp(max=count - 1)).masked_fill_(columns_BK >= count, 0.0)
    mass_BK = inside_BK.cumsum(-1, dtype=torch.float64)
    below_1 = 1 - torch.finfo(torch.float64).eps
    at_B1 = _first_above(mass_BK, share_B1.clamp(0.0, below_1) * mass_BK[:, -1:])
    return (block_B1 * _BLOCK + at_B1).clamp_(max=count - 1), total_B1


def _first_above(mass_BK: Tensor, wanted_B1: Tensor) -> Tensor:
    index_B1 = torch.searchsorted(mass_BK, wanted_B1, right=True)
    return index_B1.clamp_(max=mass_BK.shape[-1] - 1)  # only for rows of NaN, which `Responses` reports


class Responses:
    """What was drawn, by response and step, each with a random number of its own. A step that is drawn again takes the
    place of what it was.

    Args:
        responses: how many.
        params: how they are sampled; without a seed every object draws anew.
        device: where the draws are.
    """

    def __init__(self, responses: int, params: SamplingParams, device: torch.device):
        def table(dtype: torch.dtype) -> Tensor:
            return torch.zeros(responses, params.max_new_tokens, dtype=dtype, device=device)

        self._params, self.device = params, device
        self._tokens_NT, self._logprobs_NT = table(torch.int64), table(torch.float32)
        self._kept_mass_NT = table(torch.float64) if params.temperature else None
        self._supports: list[list[tuple[int, ...]]] | None = None
        if params.return_support and params.temperature:
            self._supports = [[] for _ in range(responses)]
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._uniforms_NT = _uniforms(responses, params).to(device)
        self._full: dict[int, tuple[float, ...]] = {}

    def choose(self, logits_RV: Tensor, responses_R: Tensor, steps_R: Tensor) -> Tensor:
        """Draws one token a row, the next of these responses; see `Choose`."""
        held_back_R = steps_R < self._params.min_new_tokens
        any_held_back = self._params.min_new_tokens > 0 and bool(held_back_R.any())
        uniforms_R = self._uniforms_NT[responses_R, steps_R]
        drawn = draw(logits_RV, uniforms_R, self._params, held_back_R if any_held_back else None)
        self.add(responses_R, steps_R, drawn)
        return drawn.tokens_B

    def add(self, rows_B: Tensor, steps_B: Tensor, drawn: Draw) -> None:
        """The tokens that the responses `rows_B` got as their `steps_B`-th."""
        self._tokens_NT[rows_B, steps_B] = drawn.tokens_B
        self._logprobs_NT[rows_B, steps_B] = drawn.logprobs_B
        self._sound &= drawn.sound_B.all()
        if self._kept_mass_NT is not None:
            self._kept_mass_NT[rows_B, steps_B] = drawn.kept_mass_B
        if self._supports is not None:
            ids, counts_B = drawn.support
            for row, own in zip(rows_B.tolist(), ids.cpu().split(counts_B.tolist()), strict=True):
                self._supports[row].append(tuple(own.tolist()))

    def reply(self, row: int) -> list[int]:
        """A response up to its first stop token."""
        return self._ended(self._tokens_NT[row].tolist())[0]

    def note_full(self, row: int, logprobs: Sequence[float]) -> None:
        """`Completion.full_logprobs` of a response, where they are told rather than worked out."""
        self._full[row] = tuple(logprobs)

    def require_sound(self) -> None:
        """Raises RolloutError where some logits were not finite."""
        if not bool(self._sound):
            raise RolloutError(
                "the policy gave logits that are not finite (NaN or infinite): its weights are broken, "
                "go back to an earlier checkpoint or lower the learning rate"
            )

    def completions(self, weight_version: int) -> list[Completion]:
        """Each response up to its first stop token.

        Raises:
            RolloutError: some logits were not finite.
        """
        self.require_sound()
        tokens, logprobs = self._tokens_NT.tolist(), self._logprobs_NT.tolist()
        kept_mass = None if self._kept_mass_NT is None else self._kept_mass_NT.tolist()
        found = []
        for row, ids in enumerate(tokens):
            reply, stopped = self._ended(ids)
            end = len(reply)
            found.append(
                Completion(
                    token_ids=tuple(reply),
                    logprobs=tuple(logprobs[row][:end]),
                    finish_reason="stop" if stopped else "length",
                    weight_version=weight_version,
                    kept_mass=None if kept_mass is None else tuple(kept_mass[row][:end]),
                    support=None if self._supports is None else tuple(self._supports[row][:end]),
                    full_logprobs=self._full.get(row),
                )
            )
        return found

    def _ended(self, ids: list[int]) -> tuple[list[int], bool]:
        """Up to the first stop token, and whether there is one."""
        stops = self._params.stop_token_ids
        end = next((at + 1 for at, token in enumerate(ids) if token in stops), None)
        return ids[:end], end is not None


def _uniforms(rows: int, params: SamplingParams) -> Tensor:
    """uniforms_BT, float64, on the CPU whatever the model's device, so that a seed means the same everywhere."""
    if params.temperature == 0:
        return torch.zeros(1, 1, dtype=torch.float64).expand(rows, params.max_new_tokens)
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    before = params.first * params.n
    return torch.rand(before + rows, params.max_new_tokens, generator=generator, dtype=torch.float64)[before:]
