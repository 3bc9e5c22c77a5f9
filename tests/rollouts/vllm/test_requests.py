"""What needs no engine: seeds, what vLLM's log-probabilities are of ours, and no vLLM at all."""

import math
import os
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.vllm.engine import VLLMEngine
from rollouts.vllm.requests import (
    PROCESSED,
    RAW,
    answered_completion,
    answered_scores,
    completion,
    derived_seed,
    logprobs_mode,
    made_by,
    sampling_requests,
    scoring_request,
)
from tests.rollouts.vllm.models import build, settings

STOP = {"stop_token_ids": (3,), "max_new_tokens": 4}


def reply(**changes):
    """A reply of vLLM's: two tokens, log-probabilities -1 and -2."""
    flat = SimpleNamespace(start_indices=[0, 1], end_indices=[1, 2], logprobs=[-1.0, -2.0])
    given = {"token_ids": [5, 3], "logprobs": flat, "finish_reason": "stop", "sampling_mask": None}
    return SimpleNamespace(**(given | changes))


def test_seeds_of_rows_are_far_apart_and_fixed():
    seeds = [derived_seed(seed, row) for seed in range(20) for row in range(200)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**48 for seed in seeds)
    ordered = sorted(seeds)
    assert min(b - a for a, b in pairwise(ordered)) > 1000  # vLLM adds the reply's number
    assert derived_seed(0, 0) == 0x7808B38A4191


@pytest.mark.parametrize(
    ("mode", "params", "drawn", "full"),
    [
        (RAW, {}, True, True),
        (RAW, {"top_p": 0.9}, False, True),
        (RAW, {"top_k": 5}, False, True),
        (RAW, {"min_new_tokens": 1} | STOP, False, True),
        (RAW, {"min_new_tokens": 1}, True, True),  # nothing to hold back
        (RAW, {"temperature": 0.7}, False, False),
        (PROCESSED, {"temperature": 0.7}, True, True),
        (PROCESSED, {"temperature": 0.7, "top_p": 0.9}, True, False),
        (PROCESSED, {"top_k": 5}, True, False),
        (PROCESSED, {"min_new_tokens": 1} | STOP, True, False),
    ],
)
def test_each_kind_of_log_probability_says_what_it_is(mode, params, drawn, full):
    ours = completion(reply(), SamplingParams(**params), mode, 4)
    assert ours.logprobs == ((-1.0, -2.0) if drawn else None)
    assert ours.full_logprobs == ((-1.0, -2.0) if full else None)
    assert (ours.token_ids, ours.finish_reason, ours.weight_version, ours.kept_mass) == ((5, 3), "stop", 4, None)


def test_greedy_replies_have_no_distribution():
    ours = completion(reply(), SamplingParams(temperature=0), RAW, 1)
    assert ours.logprobs == (0.0, 0.0) and ours.full_logprobs is None


def test_the_kind_follows_the_temperature_of_the_rollouts():
    assert logprobs_mode(1.0) == RAW and logprobs_mode(0.7) == PROCESSED
    assert logprobs_mode(1.0, return_support=True) == PROCESSED  # vLLM records masks beside these alone


def test_sampling_masks_become_the_support():
    asked = SamplingParams(top_k=2, return_support=True)
    mask = SimpleNamespace(token_ids=[[5, 9], [3]])
    assert completion(reply(sampling_mask=mask), asked, PROCESSED, 1).support == ((5, 9), (3,))
    with pytest.raises(RolloutError, match="no sampling mask"):
        completion(reply(), asked, PROCESSED, 1)


def test_a_reply_that_vllm_gave_up_is_an_error():
    with pytest.raises(RolloutError, match="after 2 tokens with 'abort'"):
        completion(reply(finish_reason="abort"), SamplingParams(), RAW, 1)


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    before = dict(os.environ)
    with pytest.raises(RolloutError, match=r"align-rlhf\[vllm\].*make install-vllm"):
        VLLMEngine(build(), settings())
    assert dict(os.environ) == before


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
    reply = answered_completion(answer(), SamplingParams(**changes), mode, 3)
    assert reply.logprobs == ((-0.5, -1.25) if logprobs else None)
    assert reply.full_logprobs == ((-0.5, -1.25) if full else None)
    assert (reply.token_ids, reply.weight_version, reply.finish_reason) == ((4, 9), 3, "length")


def test_greedy_ones_are_certain():
    reply = answered_completion(answer(reason="stop"), SamplingParams(temperature=0), RAW, 3)
    assert reply.logprobs == (0.0, 0.0) and reply.full_logprobs is None and reply.finish_reason == "stop"


def test_an_answer_is_one_version_s_or_none_s():
    assert made_by(answer(), "m-3") and not made_by(answer(), "m-4")
    assert not made_by(answer(versions=(("m-3", 0, 1), ("m-4", 1, 2))), "m-4")
    assert not made_by(answer(versions=()), "m-3") and not made_by(answer(reason="abort"), "m-3")


def test_scores_are_those_of_the_sequence_s_own_ids():
    scored = {"prompt_logprobs": [None, {"8": {"logprob": -2.0}}, {"8": {"logprob": -0.1}, "3": {"logprob": -3.5}}]}
    assert answered_scores(scored, [5, 8, 3]) == (-2.0, -3.5)
    assert scoring_request([5, 8, 3])["sampling_params"]["prompt_logprobs"] == 0
    assert answered_scores({"prompt_logprobs": [None]}, [5]) == ()


def test_broken_logits_are_not_passed_on():
    """vLLM's server writes -9999 for NaN; no float32 log-probability of a drawn token is that small."""
    assert math.log(2.0**-149) > -9999
    with pytest.raises(RolloutError, match="logits that are not finite"):
        answered_completion(answer(values=(-0.5, -9999.0)), SamplingParams(), RAW, 3)
    with pytest.raises(RolloutError, match="logits that are not finite"):
        answered_scores({"prompt_logprobs": [None, {"8": {"logprob": -9999.0}}]}, [5, 8])
