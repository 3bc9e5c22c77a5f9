"""Replies whose every token was drawn from the logits that the trainer differentiates, to the bit (`rollout.exact`).

An engine feeds a token at a time to cached keys and values, a trainer whole rows: the same sums in another order. So
the log-probabilities of the two differ by rounding, and what is sampled from is not quite what is trained. Here the
engine only drafts. The trainer's own pass reads each prompt with its draft, alone, and every token is drawn again: from
the logits of that pass, with the random number that it was drafted with. Where another token comes out, the reply is
kept up to there and the rest is drafted and read anew, until a pass changes nothing. Then that very pass, over these
very tokens, is what the training makes again, and its log-probabilities are the engine's. Tokens are drawn one by one:
logits in bfloat16 have ties, and in what order these lie in a nucleus depends on the rows beside them.

This is speculative decoding (Leviathan et al. 2023, 2211.17192) where draft and target share their random numbers, so
that a better draft makes it faster and no draft makes it different. It costs a pass over each reply and, for each token
that rounding changed, another one and a new draft of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.sampling import Choose, Responses

Watch = Callable[[Tensor, slice], None]


class TrainerPass(Protocol):
    """The trainer's pass over one prompt with one reply, made as it is made in training."""

    def __call__(self, prompt: Sequence[int], reply: Sequence[int], temperature: float, watch: Watch) -> list[float]:
        """Log-probabilities of the reply's tokens in nats, of the whole vocabulary at this temperature. `watch` is
        shown the logits (logits_nV, which of the reply's tokens they are for), block by block in their order, and
        changes none; those of padding may follow."""
        ...


class Draft(Protocol):
    """How an engine has responses chosen: `n` to each prompt, prompt-major."""

    def __call__(self, prompts: list[list[int]], params: SamplingParams, choose: Choose, limits: Sequence[int]) -> None:
        """`choose` draws each token; a response ends with a stop token, or when it has as many as its limit says."""
        ...


def settle(
    responses: Responses, prompts: list[list[int]], params: SamplingParams, draft: Draft, trainer_pass: TrainerPass
) -> None:
    """Makes of drafted responses those that are drawn from the logits of `trainer_pass`.

    Raises:
        RolloutError: they do not settle, or logits are not finite.
    """
    unsettled = list(range(len(prompts) * params.n))
    for _ in range(params.max_new_tokens + 1):  # a pass settles one token more of each at least
        changed: list[tuple[int, list[int]]] = []
        for response in unsettled:
            prompt, reply = prompts[response // params.n], responses.reply(response)
            drawn, logprobs = _redrawn(responses, response, prompt, reply, params.temperature, trainer_pass)
            if drawn != reply:
                kept = next(at for at, (old, new) in enumerate(zip(reply, drawn, strict=True)) if old != new)
                changed.append((response, drawn[: kept + 1]))
            elif params.temperature > 0:
                responses.note_full(response, logprobs)
        responses.require_sound()
        if not changed:
            return
        _redraft(responses, changed, prompts, params, draft)
        unsettled = [response for response, _ in changed]
    raise RolloutError(
        "ppo.rollout.exact: the trainer's log-probability of a token changes with the tokens behind it, so no reply "
        "can be drawn from it: set exact: false"
    )


def _redrawn(
    responses: Responses,
    response: int,
    prompt: list[int],
    reply: list[int],
    temperature: float,
    trainer_pass: TrainerPass,
) -> tuple[list[int], list[float]]:
    """(The tokens of a reply drawn again, their log-probabilities where they are the reply's)."""
    drawn: list[int] = []

    def watch(logits_nV: Tensor, at: slice) -> None:
        del drawn[at.start :]  # a model that is asked twice means the second answer
        steps_n = torch.arange(len(reply), device=logits_nV.device)[at]
        found = []
        for logits_1V, step_1 in zip(logits_nV[: len(steps_n)].split(1), steps_n.split(1), strict=True):  # see above
            own_1V = logits_1V.to(torch.float32, copy=True)
            found.append(responses.choose(own_1V, torch.full_like(step_1, response), step_1))
        drawn.extend(torch.cat(found).tolist() if found else ())

    logprobs = trainer_pass(prompt, reply, temperature or 1.0, watch)
    return drawn, logprobs


def _redraft(
    responses: Responses,
    changed: Sequence[tuple[int, list[int]]],
    prompts: list[list[int]],
    params: SamplingParams,
    draft: Draft,
) -> None:
    """Drafts what comes behind the kept beginnings of some responses."""
    begun = [(response, kept) for response, kept in changed if _goes_on(kept, params)]
    if not begun:
        return
    told = [(response, len(kept)) for response, kept in begun]
    places, lengths = torch.tensor(told, device=responses.device).unbind(-1)
    limits = [params.max_new_tokens - len(kept) for _, kept in begun]

    def choose(logits_RV: Tensor, responses_R: Tensor, steps_R: Tensor) -> Tensor:
        return responses.choose(logits_RV, places[responses_R], steps_R + lengths[responses_R])

    rest = replace(params, n=1, max_new_tokens=max(limits), min_new_tokens=0)
    draft([prompts[response // params.n] + kept for response, kept in begun], rest, choose, limits)


def _goes_on(kept: list[int], params: SamplingParams) -> bool:
    return len(kept) < params.max_new_tokens and kept[-1] not in params.stop_token_ids
