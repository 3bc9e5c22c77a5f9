"""The sampler alone, on logits whose distribution is known."""

import math

import pytest
import torch

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.sampling import TokenSampler

HALF, THIRTY, FIFTEEN, FIVE = math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)


def draw(logits, uniforms, **params):
    """The tokens drawn in one step from one row of logits, for several uniform numbers, and their log-probabilities."""
    uniforms_BT = torch.tensor(uniforms, dtype=torch.float64)[:, None]
    sampler = TokenSampler(SamplingParams(**params), uniforms_BT)
    scores = torch.tensor([logits] * len(uniforms))
    tokens = sampler(torch.zeros(len(uniforms), 1, dtype=torch.long), scores).argmax(-1).tolist()
    return tokens, [logprobs[0] for logprobs in sampler.finish().logprobs]


def test_whole_distribution_is_cut_at_cumulated_probabilities():
    tokens, logprobs = draw([HALF, THIRTY, FIFTEEN, FIVE], [0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96, 1 - 2**-53])
    assert tokens == [0, 0, 1, 1, 2, 2, 3, 3]
    assert logprobs == pytest.approx([HALF, HALF, THIRTY, THIRTY, FIFTEEN, FIFTEEN, FIVE, FIVE], abs=1e-6)


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    # 0.5 + 0.3 = 0.8 reaches 0.75 with two tokens: they are drawn with 0.625 and 0.375.
    tokens, logprobs = draw([FIVE, HALF, FIFTEEN, THIRTY], [0.0, 0.62, 0.63, 0.999], top_p=0.75)
    assert tokens == [1, 1, 3, 3]
    assert logprobs == pytest.approx([math.log(0.625)] * 2 + [math.log(0.375)] * 2, abs=1e-6)


def test_top_p_smaller_than_the_first_token_keeps_that_one():
    assert draw([FIVE, HALF, FIFTEEN, THIRTY], [0.0, 0.999], top_p=0.1) == ([1, 1], [0.0, 0.0])


def test_top_p_beyond_the_first_candidates_sorts_the_vocabulary():
    # 1000 equally likely tokens: 90 % of the mass needs 900 of them, each drawn with 1/900.
    tokens, logprobs = draw([0.0] * 1000, [index / 900 + 1e-6 for index in range(900)], top_p=0.9)
    assert len(set(tokens)) in (900, 901)  # 901 when rounding leaves the sum of 900 a hair under 0.9
    assert logprobs[0] == pytest.approx(-math.log(900), abs=2e-3)


def test_top_k_then_top_p_over_what_is_left():
    # top-k 2 leaves 0.5 and 0.3, that is 0.625 and 0.375; top-p 0.6 of that is the first alone.
    assert draw([HALF, THIRTY, FIFTEEN, FIVE], [0.0, 0.999], top_k=2, top_p=0.6)[0] == [0, 0]
    tokens, logprobs = draw([HALF, THIRTY, FIFTEEN, FIVE], [0.62, 0.63], top_k=2)
    assert tokens == [0, 1]
    assert logprobs == pytest.approx([math.log(0.625), math.log(0.375)], abs=1e-6)


def test_temperature_half_squares_the_probabilities():
    # 0.25, 0.09, 0.0225, 0.0025 over their sum 0.365
    tokens, logprobs = draw([HALF, THIRTY, FIFTEEN, FIVE], [0.68, 0.69], temperature=0.5)
    assert tokens == [0, 1]
    assert logprobs == pytest.approx([math.log(0.25 / 0.365), math.log(0.09 / 0.365)], abs=1e-6)


def test_tokens_of_no_probability_are_never_drawn():
    tokens, _ = draw([-torch.inf, HALF, -torch.inf, HALF, -torch.inf], [0.0, 0.5 - 1e-9, 0.5 + 1e-9, 1 - 2**-53])
    assert tokens == [1, 1, 3, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad, temperature):
    with pytest.raises(RolloutError, match="not finite"):
        draw([0.0, bad, 0.0], [0.5], temperature=temperature)
