"""What the engine records of truncation, against float64 numpy on the model's own logits."""

import math

import numpy as np
import pytest
import torch

from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.sampling import draw

PROMPTS = [[5, 6, 7, 8, 9], [3], [11, 12, 13]]
STOPS = (7, 30)


def truncated(logits, temperature, top_k, top_p, banned=()):
    """(ids that may be drawn, their share of the full mass, {id: probability drawn with}) of one row of logits."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    full = np.exp(scaled - scaled.max())
    full /= full.sum()
    allowed = [token for token in np.argsort(-full) if token not in banned]
    allowed = allowed[: top_k or None]
    shares = full[allowed] / full[allowed].sum()
    size = int(np.argmax(np.cumsum(shares) >= top_p - 1e-12)) + 1 if top_p < 1 else len(allowed)
    support = [int(token) for token in allowed[:size]]
    kept = float(full[support].sum())
    return set(support), kept, {token: full[token] / kept for token in support}


def next_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()


@pytest.mark.parametrize(("vocabulary", "min_new_tokens"), [(40, 3), (300, 0)])  # around the sampler's first look
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (5, 1.0), (8, 0.9), (0, 1.0)])
def test_support_and_kept_mass_are_those_of_the_models_logits(build_model, vocabulary, min_new_tokens, top_k, top_p):
    model = build_model(vocab_size=vocabulary).double()  # rows beside each other round as alone
    params = SamplingParams(
        n=4,
        temperature=0.7,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=6,
        min_new_tokens=min_new_tokens,
        stop_token_ids=STOPS,
        seed=11,
        return_support=True,
    )
    completions = HFEngine(model, 0, batch_size=5).generate(PROMPTS, params)
    for index, completion in enumerate(completions):
        ids = completion.token_ids
        assert len(ids) == len(completion.logprobs) == len(completion.kept_mass) == len(completion.support)
        for at, token in enumerate(ids):
            logits = next_logits(model, PROMPTS[index // 4] + list(ids[:at]))
            banned = STOPS if at < min_new_tokens else ()
            support, kept, drawn_with = truncated(logits, 0.7, top_k, top_p, banned)
            assert len(set(completion.support[at])) == len(completion.support[at])
            assert set(completion.support[at]) == support
            assert completion.kept_mass[at] == pytest.approx(kept, rel=1e-5)
            assert completion.logprobs[at] == pytest.approx(math.log(drawn_with[token]), abs=1e-5)
    masses = [mass for completion in completions for mass in completion.kept_mass]
    if (top_k, top_p, min_new_tokens) == (0, 1.0, 0):
        assert set(masses) == {1.0}
    else:
        assert min(masses) < 0.999  # something was left out, else the comparison says little


def test_stop_tokens_held_back_count_as_truncation_only_while_they_are(model):
    params = SamplingParams(n=8, max_new_tokens=4, min_new_tokens=2, stop_token_ids=STOPS, seed=3, return_support=True)
    for completion in HFEngine(model, 0).generate(PROMPTS, params):
        assert all(mass < 1 for mass in completion.kept_mass[:2])
        assert set(completion.kept_mass[2:]) <= {1.0}
        assert [len(ids) for ids in completion.support] == [38, 38, 40, 40][: len(completion.support)]


def test_the_record_does_not_change_what_is_drawn_and_is_left_out_unless_asked_for(model):
    plain = SamplingParams(n=3, top_p=0.9, max_new_tokens=6, stop_token_ids=STOPS, seed=4)
    asked = SamplingParams(n=3, top_p=0.9, max_new_tokens=6, stop_token_ids=STOPS, seed=4, return_support=True)
    first, second = HFEngine(model, 0).generate(PROMPTS, plain), HFEngine(model, 0).generate(PROMPTS, asked)
    assert all(completion.support is None for completion in first)
    for one, other in zip(first, second, strict=True):
        assert (one.token_ids, one.logprobs, one.kept_mass) == (other.token_ids, other.logprobs, other.kept_mass)


def test_kept_mass_by_hand():
    # top-p 0.75 of 0.05, 0.5, 0.15, 0.3 keeps 0.5 and 0.3; with the likeliest held back it keeps 0.3 and 0.15,
    # 0.9 of the 0.5 that is left
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    params = SamplingParams(top_p=0.75, stop_token_ids=(1,), return_support=True)
    for held_back, expected, support in ((False, 0.8, {1, 3}), (True, 0.45, {2, 3})):
        drawn = draw(logits.clone(), torch.tensor([0.5]).double(), params, torch.tensor([held_back]))
        assert float(drawn.kept_mass_B) == pytest.approx(expected, rel=1e-6)
        assert set(drawn.support[0].tolist()) == support


def test_a_held_back_token_of_nearly_all_mass_leaves_a_mass_above_zero():
    params, held_back = SamplingParams(stop_token_ids=(0,)), torch.tensor([True])
    drawn = draw(torch.tensor([[300.0, 0.0]]), torch.tensor([0.5]).double(), params, held_back)
    assert math.log(drawn.kept_mass_B) == pytest.approx(-300, rel=1e-6) and drawn.logprobs_B.tolist() == [0.0]
