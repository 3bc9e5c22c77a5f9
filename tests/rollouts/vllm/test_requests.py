"""What needs no engine: seeds, what vLLM's log-probabilities are of ours, and no vLLM at all."""

import os
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.vllm.engine import VLLMEngine
from rollouts.vllm.requests import PROCESSED, RAW, completion, derived_seed, logprobs_mode
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
    with pytest.raises(RolloutError, match=r"make install-vllm.*align-rlhf\[vllm\]"):
        VLLMEngine(build(), settings())
    assert dict(os.environ) == before
