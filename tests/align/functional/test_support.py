"""Log-probabilities over a support, against the oracle's softmax of the support's logits alone."""

import math

import pytest
import torch

from align.functional import support_logprobs, token_logprobs
from tests import oracles


def case(dtype=torch.float64, seed=0):
    """Logits (2, 4, 11), drawn ids, and supports of 1 to 7 distinct ids, padded with id 0; position (1, 3) has none."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(2, 4, 11, generator=generator, dtype=torch.float64)).to(dtype)
    order = torch.rand(2, 4, 11, generator=generator).argsort(-1)[..., :7]
    sizes = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
    mask = torch.arange(7) < sizes[..., None]
    ids = order[..., 0].masked_fill(sizes == 0, 5)
    return logits, ids, order.masked_fill(~mask, 0), mask, sizes


def expected(logits, ids, supports, sizes, temperature):
    rows = torch.zeros(ids.shape, dtype=torch.float64)
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        support = supports[b, t, : sizes[b, t]].tolist()
        if support:
            values = [float(logits[b, t, token]) for token in support]
            rows[b, t] = oracles.log_softmax(values, temperature)[support.index(int(ids[b, t]))]
    return rows


def test_by_hand():
    # 1, 2, 5, 8 of 16: over the second and third alone 2/7 and 5/7; at temperature 0.5 4/29 and 25/29
    logits = torch.tensor([[1.0, 2.0, 5.0, 8.0]] * 2, dtype=torch.float64).log()
    support, mask = torch.tensor([[1, 2]] * 2), torch.ones(2, 2)
    logps = support_logprobs(logits, torch.tensor([1, 2]), support, mask)
    assert logps.tolist() == pytest.approx([math.log(2 / 7), math.log(5 / 7)], rel=1e-14)
    cold = support_logprobs(logits, torch.tensor([1, 2]), support, mask, temperature=0.5)
    assert cold.tolist() == pytest.approx([math.log(4 / 29), math.log(25 / 29)], rel=1e-14)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_matches_the_oracle(temperature):
    logits, ids, supports, mask, sizes = case()
    logps = support_logprobs(logits, ids, supports, mask, temperature)
    torch.testing.assert_close(logps, expected(logits, ids, supports, sizes, temperature), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_are_computed_in_float32(dtype):
    logits, ids, supports, mask, sizes = case(dtype)
    logps = support_logprobs(logits, ids, supports, mask, 0.7)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), expected(logits, ids, supports, sizes, 0.7), rtol=1e-5, atol=1e-5)


def test_the_gradient_is_the_derivative():
    logits, ids, supports, mask, _ = case()
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: support_logprobs(x, ids, supports, mask, 0.7), (leaf,))


def test_no_gradient_outside_the_support_or_where_it_is_empty():
    logits, ids, supports, mask, sizes = case()
    leaf = logits.requires_grad_()
    support_logprobs(leaf, ids, supports, mask).sum().backward()
    for b, t in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        support = set(supports[b, t, : sizes[b, t]].tolist())
        outside = [token for token in range(11) if token not in support]
        assert torch.all(leaf.grad[b, t, outside] == 0)
        inside = leaf.grad[b, t, sorted(support)]
        assert len(support) < 2 or torch.all(inside != 0)  # a support of one is certain: no gradient


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_at_empty_supports_and_outside_supports_do_no_harm(bad):
    logits, ids, supports, mask, _ = case()
    clean = support_logprobs(logits, ids, supports, mask)
    logits[1, 3] = bad  # the empty one
    outside = next(token for token in range(11) if token not in supports[1, 0, :5].tolist())
    logits[1, 0, outside] = bad
    leaf = logits.requires_grad_()
    logps = support_logprobs(leaf, ids, supports, mask)
    assert torch.equal(logps, clean) and logps[1, 3] == 0
    logps.sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_the_whole_vocabulary_as_support_gives_the_full_logprobs():
    logits, ids, *_ = case()
    everything = torch.arange(11).expand(2, 4, 11)
    logps = support_logprobs(logits, ids, everything, torch.ones(2, 4, 11), 0.7)
    torch.testing.assert_close(logps, token_logprobs(logits, ids, 0.7), rtol=1e-13, atol=1e-13)


def test_an_id_outside_its_support_has_no_probability():
    logps = support_logprobs(torch.zeros(1, 4), torch.tensor([3]), torch.tensor([[0, 1]]), torch.ones(1, 2))
    assert logps.tolist() == [-math.inf]


def test_what_does_not_fit_is_refused():
    logits, ids, supports, mask, _ = case()
    with pytest.raises(ValueError, match="ids_BT"):
        support_logprobs(logits, ids[:1], supports, mask)
    with pytest.raises(ValueError, match="support_mask_BTK"):
        support_logprobs(logits, ids, supports, mask[..., :2])
    with pytest.raises(ValueError, match="temperature must be above 0"):
        support_logprobs(logits, ids, supports, mask, 0.0)
