"""The sampler alone, on logits whose distribution is known."""

import math

import pytest
import torch

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.sampling import Responses, draw

HALF, THIRTY, FIFTEEN, FIVE = math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)


def drawn(logits, uniforms, held_back=None, **params):
    """What one step draws from one row of logits, for several uniform numbers."""
    uniforms_B = torch.tensor(uniforms, dtype=torch.float64)
    return draw(torch.tensor([logits] * len(uniforms)), uniforms_B, SamplingParams(**params), held_back)


def tokens_of(logits, uniforms, **params):
    """The tokens drawn, and their log-probabilities."""
    found = drawn(logits, uniforms, **params)
    return found.tokens_B.tolist(), found.logprobs_B.tolist()


def test_whole_distribution_is_cut_at_cumulated_probabilities():
    tokens, logprobs = tokens_of([HALF, THIRTY, FIFTEEN, FIVE], [0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96, 1 - 2**-53])
    assert tokens == [0, 0, 1, 1, 2, 2, 3, 3]
    assert logprobs == pytest.approx([HALF, HALF, THIRTY, THIRTY, FIFTEEN, FIFTEEN, FIVE, FIVE], abs=1e-6)


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    # 0.5 + 0.3 = 0.8 reaches 0.75 with two tokens: they are drawn with 0.625 and 0.375.
    tokens, logprobs = tokens_of([FIVE, HALF, FIFTEEN, THIRTY], [0.0, 0.62, 0.63, 0.999], top_p=0.75)
    assert tokens == [1, 1, 3, 3]
    assert logprobs == pytest.approx([math.log(0.625)] * 2 + [math.log(0.375)] * 2, abs=1e-6)


def test_top_p_smaller_than_the_first_token_keeps_that_one():
    assert tokens_of([FIVE, HALF, FIFTEEN, THIRTY], [0.0, 0.999], top_p=0.1) == ([1, 1], [0.0, 0.0])


def test_top_p_beyond_the_first_candidates_sorts_the_vocabulary():
    # 1000 equally likely tokens: 90 % of the mass needs 900 of them, each drawn with 1/900.
    tokens, logprobs = tokens_of([0.0] * 1000, [index / 900 + 1e-6 for index in range(900)], top_p=0.9)
    assert len(set(tokens)) in (900, 901)  # 901 when rounding leaves the sum of 900 a hair under 0.9
    assert logprobs[0] == pytest.approx(-math.log(900), abs=2e-3)


def test_top_k_then_top_p_over_what_is_left():
    # top-k 2 leaves 0.5 and 0.3, that is 0.625 and 0.375; top-p 0.6 of that is the first alone.
    assert tokens_of([HALF, THIRTY, FIFTEEN, FIVE], [0.0, 0.999], top_k=2, top_p=0.6)[0] == [0, 0]
    tokens, logprobs = tokens_of([HALF, THIRTY, FIFTEEN, FIVE], [0.62, 0.63], top_k=2)
    assert tokens == [0, 1]
    assert logprobs == pytest.approx([math.log(0.625), math.log(0.375)], abs=1e-6)


def test_temperature_half_squares_the_probabilities():
    # 0.25, 0.09, 0.0225, 0.0025 over their sum 0.365
    tokens, logprobs = tokens_of([HALF, THIRTY, FIFTEEN, FIVE], [0.68, 0.69], temperature=0.5)
    assert tokens == [0, 1]
    assert logprobs == pytest.approx([math.log(0.25 / 0.365), math.log(0.09 / 0.365)], abs=1e-6)


def test_tokens_of_no_probability_are_never_drawn():
    tokens, _ = tokens_of([-torch.inf, HALF, -torch.inf, HALF, -torch.inf], [0.0, 0.5 - 1e-9, 0.5 + 1e-9, 1 - 2**-53])
    assert tokens == [1, 1, 3, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad, temperature):
    found = drawn([0.0, bad, 0.0], [0.5], temperature=temperature)
    record = Responses(1, SamplingParams(temperature=temperature, max_new_tokens=1), torch.device("cpu"))
    record.add(torch.tensor([0]), torch.tensor([0]), found)
    with pytest.raises(RolloutError, match="not finite"):
        record.completions(0)


@pytest.mark.parametrize("vocabulary", [128 * 128, 40_001])  # without and with a last block that is shorter
def test_a_large_vocabulary_is_drawn_from_as_a_small_one(vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(64, vocabulary, generator=generator) * 3
    logits_BV[:, ::3] = -torch.inf
    uniforms_B = torch.rand(64, generator=generator, dtype=torch.float64)
    uniforms_B[:2] = torch.tensor([0.0, 1 - 2**-53])
    found = draw(logits_BV.clone(), uniforms_B, SamplingParams())
    shares_BV = logits_BV.double().softmax(-1)
    mass_B = shares_BV.cumsum(-1).gather(-1, found.tokens_B[:, None])[:, 0]
    share_B = shares_BV.gather(-1, found.tokens_B[:, None])[:, 0]
    assert bool((share_B > 0).all())
    assert bool(((mass_B - share_B - 1e-7 <= uniforms_B) & (uniforms_B <= mass_B + 1e-7)).all())
    assert found.logprobs_B.tolist() == pytest.approx(share_B.log().tolist(), abs=1e-5)


def test_the_nucleus_of_a_large_vocabulary_is_that_of_all_of_it_sorted():
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(8, 40_001, generator=generator) * 3
    logits_BV[0] *= 4  # its nucleus is small, the others' are not
    logits_BV[1, -1] = logits_BV[1].max() + 1  # the largest of them beyond the last whole block
    found = draw(logits_BV.clone(), torch.full((8,), 0.3).double(), SamplingParams(top_p=0.5, return_support=True))
    ids, counts_B = found.support
    for row, own in enumerate(ids.split(counts_B.tolist())):
        shares_V, order_V = logits_BV[row].double().softmax(-1).sort(descending=True)
        size = int((shares_V.cumsum(-1) < 0.5).sum()) + 1
        assert set(own.tolist()) == set(order_V[:size].tolist())
        assert float(found.kept_mass_B[row]) == pytest.approx(float(shares_V[:size].sum()), rel=1e-5)


def test_stops_are_held_back_in_the_rows_that_ask_for_it():
    held_back = torch.tensor([True, False, True, False])
    found = drawn([HALF, THIRTY, FIFTEEN, FIVE], [0.1] * 4, held_back, stop_token_ids=(0,))
    assert found.tokens_B.tolist() == [1, 0, 1, 0]
    assert found.kept_mass_B.tolist() == pytest.approx([0.5, 1.0, 0.5, 1.0], rel=1e-6)
    assert found.kept_mass_B[1] == 1.0
    greedy = drawn([HALF, THIRTY, FIFTEEN, FIVE], [0.1] * 4, held_back, stop_token_ids=(0,), temperature=0.0)
    assert greedy.tokens_B.tolist() == [1, 0, 1, 0] and greedy.kept_mass_B is None
