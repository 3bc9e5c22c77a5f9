"""Drawing the next token inside `generate`: temperature, top-k, top-p, exact, fast, from random numbers of our own.

The sampler is a transformers logits processor that draws the token itself and hands `generate` scores whose argmax is
the drawn token, so that `generate` runs greedily. It departs from the processors of the library in three ways:

- each response has its own row of uniform numbers, drawn beforehand from one seed, so what it becomes depends neither
  on the batch it was put into, nor on when others finish, nor on the global generator, which is not touched;
- the nucleus is looked for among the largest probabilities first, and the vocabulary is sorted in full only when they
  do not hold the mass asked for (on a CPU that sort costs a third of a small model's step);
- the log-probability of the drawn token under the truncated, renormalised distribution is kept, not the (B, V) scores.

Order as in transformers and vLLM: temperature, then top-k, then top-p over what top-k left. The nucleus is the smallest
set of most probable tokens whose mass reaches `top_p` (Holtzman et al. 2020, "The Curious Case of Neural Text
Degeneration", section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams

_FIRST_LOOK = 64  # candidates looked at before the vocabulary is sorted in full


class Sampler(LogitsProcessor):
    """Draws one token a row and a step.

    Args:
        params: how to sample; temperature 0 leaves the choice to `generate` (argmax).
        uniforms_BT: float64 in [0, 1), one a row and a step.
        return_logprobs: keep the log-probability of each drawn token.
    """

    def __init__(self, params: SamplingParams, uniforms_BT: Tensor, return_logprobs: bool = False):
        self.params, self.uniforms_BT = params, uniforms_BT
        self.return_logprobs = return_logprobs
        self.step = 0
        self._logprobs: list[Tensor] = []
        self._sound_B: Tensor | None = None
        self._stops = torch.tensor(params.stop_token_ids, dtype=torch.long, device=uniforms_BT.device)
        self._live_B = torch.ones(uniforms_BT.shape[0], dtype=torch.bool, device=uniforms_BT.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores_BV: raw float32 logits, changed in place. Returns scores_BV whose argmax is the drawn token."""
        if self.step and len(self._stops):
            self._live_B &= ~torch.isin(input_ids[:, -1], self._stops)
        if self.step < self.params.min_new_tokens and len(self._stops):
            scores[:, self._stops] = -torch.inf
        if self.params.temperature == 0:
            self._check(scores.amax(-1))
            self._keep(torch.zeros(len(scores), device=scores.device))
        else:
            scores = self._draw(scores)
        self.step += 1
        return scores

    def finish(self) -> Tensor | None:
        """logprobs_BT of the drawn tokens (None unless asked for); RolloutError when some logits were not finite."""
        if self._sound_B is not None and not bool(self._sound_B.all()):
            raise RolloutError(
                "the policy gave logits that are not finite (NaN or infinite): its weights are broken, "
                "go back to an earlier checkpoint or lower the learning rate"
            )
        return torch.stack(self._logprobs, dim=1) if self._logprobs else None

    def _check(self, values_B: Tensor) -> None:
        sound_B = torch.isfinite(values_B) | ~self._live_B
        self._sound_B = sound_B if self._sound_B is None else self._sound_B & sound_B

    def _keep(self, logprobs_B: Tensor) -> None:
        if self.return_logprobs:
            self._logprobs.append(logprobs_B)

    def _draw(self, scores_BV: Tensor) -> Tensor:
        if self.params.temperature != 1.0:
            scores_BV.div_(self.params.temperature)
        weights_BK, tokens_BK = self._candidates(scores_BV)
        mass_BK = weights_BK.cumsum(-1, dtype=torch.float64)
        total_B1 = mass_BK[:, -1:]
        self._check(total_B1[:, 0])
        # The first index whose mass exceeds u * total: tokens of weight 0 can never be it, as u < 1.
        index_B1 = torch.searchsorted(mass_BK, self.uniforms_BT[:, self.step, None] * total_B1, right=True)
        index_B1.clamp_(max=weights_BK.shape[-1] - 1)  # only for rows of NaN, which `finish` reports
        if self.return_logprobs:
            self._keep((weights_BK.gather(-1, index_B1) / total_B1).log().float()[:, 0])
        tokens_B1 = index_B1 if tokens_BK is None else tokens_BK.gather(-1, index_B1)
        return scores_BV.zero_().scatter_(-1, tokens_B1, 1.0)

    def _candidates(self, scores_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Unnormalised weights_BK of the tokens that may be drawn, and their ids (None: the whole vocabulary)."""
        vocabulary = scores_BV.shape[-1]
        top_k = min(self.params.top_k or vocabulary, vocabulary)
        if top_k == vocabulary and self.params.top_p >= 1.0:
            return scores_BV.softmax(-1), None
        if top_k < vocabulary:
            values_BK, tokens_BK = scores_BV.topk(top_k)
            return self._nucleus(values_BK.softmax(-1)), tokens_BK
        log_total_B1 = scores_BV.logsumexp(-1, keepdim=True)
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
