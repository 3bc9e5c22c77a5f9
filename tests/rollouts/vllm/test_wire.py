"""The JSON of vLLM's server by hand: what it is asked, and what its answers mean."""

import math

import pytest

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.vllm.requests import PROCESSED, RAW
from rollouts.vllm.wire import made_by, sampling_requests, scoring_request, to_completion, to_logprobs


def answer(ids=(4, 9), values=(-0.5, -1.25), reason="length", versions=(("m-3", 0, 2),)):
    content = [{"token_id": token, "logprob": value, "rank": 1} for token, value in zip(ids, values, strict=True)]
    spans = [{"version": version, "start": start, "end": end} for version, start, end in versions]
    choice = {"token_ids": list(ids), "logprobs": {"content": content}, "finish_reason": reason}
    return {"choices": [choice | {"weight_versions": spans}]}


def test_requests_are_prompt_major_and_every_one_has_its_seed():
    params = SamplingParams(n=2, seed=4, stop_token_ids=(3,), max_new_tokens=9, min_new_tokens=1)
    requests = sampling_requests([[1, 2], [5]], params, 50)
    assert [request["token_ids"] for request in requests] == [[1, 2], [1, 2], [5], [5]]
    seeds = [request["sampling_params"]["seed"] for request in requests]
    assert seeds[1] == seeds[0] + 1 and seeds[3] == seeds[2] + 1 and len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sampling_requests([[1, 2]], params, 50) == requests[:2]
    common = requests[0]["sampling_params"]
    assert (common["stop_token_ids"], common["max_tokens"], common["min_tokens"]) == ([3], 9, 1)
    assert common["ignore_eos"] and not common["detokenize"] and common["logprobs"] == 0 and common["n"] == 1


def test_a_temperature_that_vllm_would_raise_is_refused():
    with pytest.raises(RolloutError, match=r"temperature 0 or at least 0\.01, not at 0\.001"):
        sampling_requests([[1]], SamplingParams(temperature=0.001), 50)


def test_without_a_seed_every_call_has_others():
    first, second = (sampling_requests([[1]], SamplingParams(), 50)[0]["sampling_params"]["seed"] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("mode", "changes", "logprobs", "full"),
    [
        (RAW, {}, True, True),
        (RAW, {"top_p": 0.9}, False, True),
        (RAW, {"min_new_tokens": 2, "stop_token_ids": (7,)}, False, True),
        (PROCESSED, {"temperature": 0.7}, True, True),
        (PROCESSED, {"temperature": 0.7, "top_k": 5}, True, False),
        (RAW, {"temperature": 0.7}, False, False),
    ],
)
def test_which_log_probabilities_an_answer_has(mode, changes, logprobs, full):
    reply = to_completion(answer(), SamplingParams(**changes), mode, 3)
    assert reply.logprobs == ((-0.5, -1.25) if logprobs else None)
    assert reply.full_logprobs == ((-0.5, -1.25) if full else None)
    assert (reply.token_ids, reply.weight_version, reply.finish_reason) == ((4, 9), 3, "length")


def test_greedy_ones_are_certain():
    reply = to_completion(answer(reason="stop"), SamplingParams(temperature=0), RAW, 3)
    assert reply.logprobs == (0.0, 0.0) and reply.full_logprobs is None and reply.finish_reason == "stop"


def test_an_answer_is_one_version_s_or_none_s():
    assert made_by(answer(), "m-3") and not made_by(answer(), "m-4")
    assert not made_by(answer(versions=(("m-3", 0, 1), ("m-4", 1, 2))), "m-4")
    assert not made_by(answer(versions=()), "m-3") and not made_by(answer(reason="abort"), "m-3")


def test_scores_are_those_of_the_sequence_s_own_ids():
    scored = {"prompt_logprobs": [None, {"8": {"logprob": -2.0}}, {"8": {"logprob": -0.1}, "3": {"logprob": -3.5}}]}
    assert to_logprobs(scored, [5, 8, 3]) == (-2.0, -3.5)
    assert scoring_request([5, 8, 3])["sampling_params"]["prompt_logprobs"] == 0
    assert to_logprobs({"prompt_logprobs": [None]}, [5]) == ()


def test_broken_logits_are_not_passed_on():
    """vLLM's server writes -9999 for NaN; no float32 log-probability of a drawn token is that small."""
    assert math.log(2.0**-149) > -9999
    with pytest.raises(RolloutError, match="logits that are not finite"):
        to_completion(answer(values=(-0.5, -9999.0)), SamplingParams(), RAW, 3)
    with pytest.raises(RolloutError, match="logits that are not finite"):
        to_logprobs({"prompt_logprobs": [None, {"8": {"logprob": -9999.0}}]}, [5, 8])
