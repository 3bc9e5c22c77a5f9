"""Our sampling parameters and completions in the JSON of vLLM's /inference/v1/generate: one request a reply.

What the numbers mean, and which seed a reply has, is said in `rollouts.vllm.requests`, for both ways to vLLM alike.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams
from rollouts.vllm.requests import SCORING, call_seed, completion, derived_seed, plain_params

_NO_NUMBER = -9999.0  # what vLLM's server writes for a log-probability that is NaN or minus infinity
_BROKEN_LOGITS = (
    "the policy gave logits that are not finite (NaN or infinite): its weights are broken, "
    "go back to an earlier checkpoint or lower the learning rate"
)


def sampling_requests(prompts: list[list[int]], params: SamplingParams, vocabulary: int) -> list[dict[str, Any]]:
    """`params.n` requests a prompt, prompt-major. Only our stop ids end a reply, and the one drawn is part of it.

    Raises:
        RolloutError: a temperature that vLLM would silently raise.
    """
    call, common = call_seed(params), plain_params(params, vocabulary) | {"n": 1}
    return [
        {"token_ids": list(prompt), "sampling_params": common | {"seed": derived_seed(call, row) + number}}
        for row, prompt in enumerate(prompts)
        for number in range(params.n)
    ]


def scoring_request(sequence: list[int]) -> dict[str, Any]:
    """Asks for the log-probabilities of a sequence's ids; vLLM must draw one token besides."""
    return {"token_ids": list(sequence), "sampling_params": SCORING | {"n": 1}}


def made_by(answer: dict[str, Any], version: str) -> bool:
    """Whether these weights and no others made all of an answer, and it ended by itself (nobody aborted it)."""
    choice = answer["choices"][0]
    spans = choice["weight_versions"] or ()
    return choice["finish_reason"] in ("stop", "length") and {span["version"] for span in spans} == {version}


def to_completion(answer: dict[str, Any], params: SamplingParams, mode: str, version: int) -> Completion:
    """The reply in an answer; `mode` is vLLM's `logprobs_mode`.

    Raises:
        RolloutError: logits that were not finite.
    """
    choice = answer["choices"][0]
    values = _sound([token["logprob"] for token in choice["logprobs"]["content"]])
    count = len(values)
    flat = SimpleNamespace(start_indices=range(count), end_indices=range(1, count + 1), logprobs=values)
    output = SimpleNamespace(
        token_ids=choice["token_ids"], finish_reason=choice["finish_reason"], logprobs=flat, sampling_mask=None
    )
    return completion(output, params, mode, version)  # type: ignore[arg-type] - vLLM's type, unimported


def to_logprobs(answer: dict[str, Any], sequence: list[int]) -> tuple[float, ...]:
    """Nats of every id but the first of `sequence`.

    Raises:
        RolloutError: logits that were not finite.
    """
    steps = answer["prompt_logprobs"][1:]
    return tuple(_sound([step[str(token)]["logprob"] for step, token in zip(steps, sequence[1:], strict=True)]))


def _sound(values: list[float]) -> list[float]:
    if _NO_NUMBER in values:
        raise RolloutError(_BROKEN_LOGITS)
    return values
