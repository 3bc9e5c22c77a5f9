"""Drawing the next token inside `generate`: temperature, top-k, top-p, exact, fast, from random numbers of our own.

The sampler is a transformers logits processor that draws the token itself and hands `generate` scores whose argmax is
the drawn token, so that `generate` runs greedily. It departs from the processors of the library in three ways:

- each response has its own row of uniform numbers, drawn beforehand from one seed, so what it becomes depends neither
  on the batch it was put into, nor on when others finish, nor on the global generator, which is not touched;
- the nucleus is looked for among the largest probabilities first, and the vocabulary is sorted in full only when they
  do not hold the mass asked for (on a CPU that sort costs a third of a small model's step);
- of the (B, V) scores only three things are kept: the log-probability of the drawn token under the truncated,
  renormalised distribution, the share of the full distribution's mass that truncation left, and, when asked for, the
  ids that could be drawn.

Order as in transformers and vLLM: temperature, then top-k, then top-p over what top-k left. The nucleus is the smallest
set of most probable tokens whose mass reaches `top_p` (Holtzman et al. 2020, "The Curious Case of Neural Text
Degeneration", section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams

_FIRST_LOOK = 64  # candidates looked at before the vocabulary is sorted in full


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is known of the tokens drawn, by row and step; after a row's end it means nothing.

    Attributes:
        logprobs: nats, under the distribution drawn from.
        kept_mass: share of the full distribution's mass in the support; None for greedy ones.
        supports: ids that could be drawn; None unless asked for.
    """

    logprobs: list[list[float]]
    kept_mass: list[list[float]] | None
    supports: list[list[tuple[int, ...]]] | None


class TokenSampler(LogitsProcessor):
    """Draws one token a row and a step.

    Args:
        params: how to sample; temperature 0 leaves the choice to `generate` (argmax).
        uniforms_BT: float64 in [0, 1), one a row and a step.
    """

    def __init__(self, params: SamplingParams, uniforms_BT: Tensor):
        self.params, self.uniforms_BT = params, uniforms_BT
        self.step = 0
        self._logprobs: list[Tensor] = []
        self._kept_mass: list[Tensor] = []
        self._supports: list[tuple[Tensor, Tensor]] = []  # a step: ids of all rows in one, and how many are whose
        self._sound_B: Tensor | None = None
        self._stops = torch.tensor(params.stop_token_ids, dtype=torch.long, device=uniforms_BT.device)
        self._live_B = torch.ones(uniforms_BT.shape[0], dtype=torch.bool, device=uniforms_BT.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores_BV: raw float32 logits, changed in place. Returns scores_BV whose argmax is the drawn token."""
        if self.step and len(self._stops):
            self._live_B &= ~torch.isin(input_ids[:, -1], self._stops)
        if self.params.temperature == 0:
            self._hold_back_stops(scores)
            self._check(scores.amax(-1))
            self._logprobs.append(torch.zeros(len(scores), device=scores.device))
        else:
            scores = self._draw(scores)
        self.step += 1
        return scores

    def finish(self) -> Drawn:
        """What is known of the drawn tokens; RolloutError when some logits were not finite."""
        if self._sound_B is not None and not bool(self._sound_B.all()):
            raise RolloutError(
                "the policy gave logits that are not finite (NaN or infinite): its weights are broken, "
                "go back to an earlier checkpoint or lower the learning rate"
            )
        steps = [ids.split(counts_B.tolist()) for ids, counts_B in self._supports]
        return Drawn(
            torch.stack(self._logprobs, dim=1).tolist(),
            torch.stack(self._kept_mass, dim=1).tolist() if self._kept_mass else None,
            [[tuple(ids.tolist()) for ids in row] for row in zip(*steps, strict=True)] if steps else None,
        )

    def _check(self, values_B: Tensor) -> None:
        sound_B = torch.isfinite(values_B) | ~self._live_B
        self._sound_B = sound_B if self._sound_B is None else self._sound_B & sound_B

    def _draw(self, scores_BV: Tensor) -> Tensor:
        if self.params.temperature != 1.0:
            scores_BV.div_(self.params.temperature)
        log_full_B1 = scores_BV.logsumexp(-1, keepdim=True) if self._truncates(scores_BV.shape[-1]) else None
        log_total_B1 = scores_BV.logsumexp(-1, keepdim=True) if self._hold_back_stops(scores_BV) else log_full_B1
        weights_BK, tokens_BK = self._candidates(scores_BV, log_total_B1)
        mass_BK = weights_BK.cumsum(-1, dtype=torch.float64)
        total_B1 = mass_BK[:, -1:]
        self._check(total_B1[:, 0])
        # The first index whose mass exceeds u * total: tokens of weight 0 can never be it, as u < 1.
        index_B1 = torch.searchsorted(mass_BK, self.uniforms_BT[:, self.step, None] * total_B1, right=True)
        index_B1.clamp_(max=weights_BK.shape[-1] - 1)  # only for rows of NaN, which `finish` reports
        tokens_B1 = index_B1 if tokens_BK is None else tokens_BK.gather(-1, index_B1)
        logprobs_B1 = (weights_BK.gather(-1, index_B1) / total_B1).log()
        self._logprobs.append(logprobs_B1[:, 0].float())
        self._kept_mass.append(_kept_mass(scores_BV.gather(-1, tokens_B1), log_full_B1, logprobs_B1)[:, 0])
        if self.params.return_support:
            self._keep_support(weights_BK, tokens_BK)
        return scores_BV.zero_().scatter_(-1, tokens_B1, 1.0)

    def _keep_support(self, weights_BK: Tensor, tokens_BK: Tensor | None) -> None:
        drawable_BK = (weights_BK > 0) & self._live_B[:, None]
        ids = drawable_BK.nonzero()[:, 1] if tokens_BK is None else tokens_BK[drawable_BK]
        self._supports.append((ids.int().cpu(), drawable_BK.sum(-1).cpu()))

    def _stops_held_back(self) -> bool:
        return self.step < self.params.min_new_tokens and len(self._stops) > 0

    def _hold_back_stops(self, scores_BV: Tensor) -> bool:
        """Whether stop tokens must not be drawn in this step; their scores are -inf then."""
        if held_back := self._stops_held_back():
            scores_BV[:, self._stops] = -torch.inf
        return held_back

    def _truncates(self, vocabulary: int) -> bool:
        """Whether this step draws from less than the whole vocabulary."""
        return 0 < self.params.top_k < vocabulary or self.params.top_p < 1.0 or self._stops_held_back()

    def _candidates(self, scores_BV: Tensor, log_total_B1: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Unnormalised weights_BK of the tokens that may be drawn, and their ids (None: the whole vocabulary).

        `log_total_B1`: logsumexp of the scores; read with top-p alone.
        """
        vocabulary = scores_BV.shape[-1]
        top_k = min(self.params.top_k or vocabulary, vocabulary)
        if top_k == vocabulary and self.params.top_p >= 1.0:
            return scores_BV.softmax(-1), None
        if top_k < vocabulary:
            values_BK, tokens_BK = scores_BV.topk(top_k)
            return self._nucleus(values_BK.softmax(-1)), tokens_BK
        if vocabulary > _FIRST_LOOK:
            values_BK, tokens_BK = scores_BV.topk(_FIRST_LOOK)
            weights_BK = (values_BK - log_total_B1).exp()
            enough_B = weights_BK.sum(-1) >= self.params.top_p
            if bool((enough_B | ~self._live_B).all()):
                return self._nucleus(weights_BK), tokens_BK
        values_BV, tokens_BV = scores_BV.sort(-1, descending=True)
        return self._nucleus((values_BV - log_total_B1).exp()), tokens_BV

    def _nucleus(self, weights_BK: Tensor) -> Tensor:
        """Zeroes what lies outside the nucleus; weights come in descending order and as shares of the whole mass."""
        if self.params.top_p >= 1.0:
            return weights_BK
        before_BK = weights_BK.cumsum(-1) - weights_BK
        return weights_BK.masked_fill(before_BK >= self.params.top_p, 0.0)


def _kept_mass(scores_B1: Tensor, log_full_B1: Tensor | None, logprobs_B1: Tensor) -> Tensor:
    """Share of the full distribution's mass that was drawn from, float64: p_full / p_drawn of the drawn token, as
    truncation scales all that it leaves alike. `log_full_B1`: logsumexp of all scores; None when nothing was left out.
    """
    if log_full_B1 is None:
        return torch.ones_like(logprobs_B1)
    share_B1 = ((scores_B1 - log_full_B1).double() - logprobs_B1).exp()
    return share_B1.clamp(torch.finfo(torch.float64).tiny, 1.0)  # never 0: its logarithm is taken
