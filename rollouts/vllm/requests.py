"""Between our sampling parameters and completions and vLLM's, as Python objects (in this process) and JSON (a server).

vLLM's log-probabilities are of one kind for the life of an engine (`logprobs_mode`), and which kind says what of ours:

- raw (`log_softmax(logits)`): the full distribution's at temperature 1; that of the draw too when nothing is truncated.
- processed (after temperature, held-back stop tokens, top-k and top-p): always that of the draw; the full
  distribution's too when nothing is truncated.

JSON is that of /inference/v1/generate: one request a reply.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams

if TYPE_CHECKING:
    import vllm

RAW, PROCESSED = "raw_logprobs", "processed_logprobs"
LOWEST_TEMPERATURE = 0.01
SCORING = {"max_tokens": 1, "top_k": 1, "seed": 0, "prompt_logprobs": 0, "ignore_eos": True, "detokenize": False}
"""Scores a prompt; vLLM must draw one token besides, top-k 1 of which any engine accepts."""
_NO_NUMBER = -9999.0  # what vLLM's server writes for a log-probability that is NaN or minus infinity


def derived_seed(seed: int, row: int) -> int:
    """The seed of prompt `row`, 48 bits; vLLM adds a reply's number to it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=6).digest(), "big")


def logprobs_mode(temperature: float, return_support: bool = False) -> str:
    """The kind of log-probabilities that an engine for rollouts at this temperature asks vLLM for."""
    return RAW if temperature == 1 and not return_support else PROCESSED


def is_truncated(params: SamplingParams) -> bool:
    """Whether some tokens may not be drawn: top-k, top-p or held-back stop tokens."""
    held_back = params.min_new_tokens > 0 and bool(params.stop_token_ids)
    return params.top_p < 1 or params.top_k > 0 or held_back


def call_seed(params: SamplingParams) -> int:
    """The seed of a call; without one of the user's, another every time."""
    return secrets.randbits(64) if params.seed is None else params.seed


def plain_params(params: SamplingParams, vocabulary: int) -> dict[str, Any]:
    """How every prompt of a call is sampled, in vLLM's words; seed and number of replies come on top.

    Raises:
        RolloutError: a temperature that vLLM would silently raise.
    """
    if 0 < params.temperature < LOWEST_TEMPERATURE:
        raise RolloutError(
            f"vLLM samples at temperature 0 or at least {LOWEST_TEMPERATURE}, not at {params.temperature}: choose one "
            "of them, or ppo.rollout.engine: hf"
        )
    return {
        "temperature": params.temperature,
        "top_p": 1.0 if params.temperature == 0 else params.top_p,
        "top_k": min(params.top_k, vocabulary),
        "max_tokens": params.max_new_tokens,
        "min_tokens": params.min_new_tokens,
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": True,
        "detokenize": False,
        "logprobs": 0,
    }


def request_params(params: SamplingParams, rows: int, vocabulary: int, *, mask: bool) -> list[vllm.SamplingParams]:
    """One of vLLM's parameter objects a prompt, for `params.n` replies that share the prompt's prefill.

    Every request has a seed, so vLLM draws nothing from the process's global generators.

    Args:
        mask: the engine records sampling masks; vLLM then refuses temperature 0 and an unlimited top-k, so greedy is
            asked for as top-k 1, and no top-k as one of the whole vocabulary.

    Raises:
        RolloutError: as `plain_params`.
    """
    from vllm import SamplingParams as Params

    seed, changes = call_seed(params), {}
    if mask and params.temperature == 0:
        changes = {"temperature": 1.0, "top_k": 1}
    elif mask and params.top_k == 0:
        changes = {"top_k": vocabulary}
    replies = params.n if params.temperature > 0 else 1  # greedy ones are equal, and vLLM refuses more than one
    return [
        Params(
            **plain_params(params, vocabulary) | changes, n=replies, seed=derived_seed(seed, row), flat_logprobs=True
        )
        for row in range(params.first, params.first + rows)
    ]


def chosen_params(params: SamplingParams, limits: Sequence[int]) -> list[vllm.SamplingParams]:
    """One of vLLM's parameter objects a response, of which somebody else chooses the tokens."""
    from vllm import SamplingParams as Params

    from rollouts.vllm.chooser import RESPONSE

    told = {"temperature": 0.0, "stop_token_ids": list(params.stop_token_ids), "ignore_eos": True, "detokenize": False}
    return [Params(**told, max_tokens=limit, extra_args={RESPONSE: row}) for row, limit in enumerate(limits)]


def scoring_params(rows: int) -> list[vllm.SamplingParams]:
    """Parameters that score a prompt each."""
    from vllm import SamplingParams as Params

    return [Params(**SCORING, flat_logprobs=True) for _ in range(rows)]


def check_ids(ids: list[int], what: str, vocabulary: int) -> None:
    """Raises RolloutError for a sequence that vLLM cannot read; an id outside the vocabulary would end a server."""
    if not ids:
        raise RolloutError(f"{what} is empty: the model needs at least one token to continue")
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise RolloutError(f"{what} has an id outside the model's vocabulary of {vocabulary}")


def completion(output: vllm.CompletionOutput, params: SamplingParams, mode: str, version: int) -> Completion:
    """One of vLLM's replies as ours; `mode` is its `logprobs_mode`.

    Raises:
        RolloutError: vLLM gave a reply up, gave no sampling mask where the support was asked for, or drew from logits
            that are not finite.
    """
    support = None
    if params.return_support and params.temperature > 0:
        if output.sampling_mask is None:
            raise RolloutError("vLLM recorded no sampling mask for a reply: use rollout engine hf for the support")
        support = tuple(tuple(int(token) for token in row) for row in output.sampling_mask.token_ids)
    values = _chosen(output.logprobs)
    return _completion(output.token_ids, values, output.finish_reason, params, mode, version, support)


def prompt_scores(output: vllm.RequestOutput) -> tuple[float, ...]:
    """Log-probability of every id of the prompt but the first."""
    return _chosen(output.prompt_logprobs)


def sampling_requests(prompts: list[list[int]], params: SamplingParams, vocabulary: int) -> list[dict[str, Any]]:
    """`params.n` requests a prompt, prompt-major. Only our stop ids end a reply, and the one drawn is part of it.

    Raises:
        RolloutError: a temperature that vLLM would silently raise.
    """
    call, common = call_seed(params), plain_params(params, vocabulary) | {"n": 1}
    return [
        {"token_ids": list(prompt), "sampling_params": common | {"seed": derived_seed(call, row) + number}}
        for row, prompt in enumerate(prompts, params.first)
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


def answered_completion(answer: dict[str, Any], params: SamplingParams, mode: str, version: int) -> Completion:
    """The reply in an answer, as `completion`."""
    choice = answer["choices"][0]
    values = _sound([token["logprob"] for token in choice["logprobs"]["content"]])
    return _completion(choice["token_ids"], values, choice["finish_reason"], params, mode, version)


def answered_scores(answer: dict[str, Any], sequence: list[int]) -> tuple[float, ...]:
    """Nats of every id but the first of `sequence`.

    Raises:
        RolloutError: logits that were not finite.
    """
    steps = answer["prompt_logprobs"][1:]
    return _sound([step[str(token)]["logprob"] for step, token in zip(steps, sequence[1:], strict=True)])


def _completion(
    token_ids: Sequence[int],
    values: tuple[float, ...],
    finish_reason: str | None,
    params: SamplingParams,
    mode: str,
    version: int,
    support: tuple[tuple[int, ...], ...] | None = None,
) -> Completion:
    ids = tuple(int(token) for token in token_ids)
    if finish_reason not in ("stop", "length"):
        raise RolloutError(f"vLLM ended a reply after {len(ids)} tokens with '{finish_reason}'; see its log")
    if not all(map(math.isfinite, values)):
        raise RolloutError("the logits in vLLM are not finite: the weights are broken, or too large for the dtype")
    drawn, full = _meaning(values, params, mode)
    return Completion(
        token_ids=ids,
        logprobs=drawn,
        finish_reason=finish_reason,
        weight_version=version,
        support=support,
        full_logprobs=full,
    )


def _chosen(flat: Any) -> tuple[float, ...]:
    """The first value of each position that has any: with `logprobs=0` it is the token's own, and the only one."""
    spans = zip(flat.start_indices, flat.end_indices, strict=True)
    return tuple(float(flat.logprobs[start]) for start, end in spans if end > start)


def _sound(values: list[float]) -> tuple[float, ...]:
    if _NO_NUMBER in values:
        raise RolloutError(
            "the policy gave logits that are not finite (NaN or infinite): its weights are broken, "
            "go back to an earlier checkpoint or lower the learning rate"
        )
    return tuple(values)


def _meaning(
    values: tuple[float, ...], params: SamplingParams, mode: str
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(`logprobs`, `full_logprobs`) of a completion from vLLM's values."""
    if params.temperature == 0:
        return (0.0,) * len(values), None
    whole = not is_truncated(params)
    if mode == PROCESSED:
        return values, values if whole else None
    if params.temperature == 1:
        return values if whole else None, values
    return None, None
