import math

import pytest
import torch

from align.functional import kl_estimate, policy_loss, token_entropy, token_kl, token_logprobs
from align.functional import logprobs as module
from tests import oracles


def noise(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids_for(*shape: int, vocab: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def test_logprobs_by_hand():
    # softmax(log 1, log 2, log 5) = 1/8, 2/8, 5/8; at temperature 0.5 the odds are squared: 1, 4, 25 of 30
    logits = torch.tensor([[[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]], dtype=torch.float64).log()
    ids = torch.tensor([[0, 2]])
    assert token_logprobs(logits, ids).tolist()[0] == pytest.approx([math.log(1 / 8), math.log(5 / 8)], rel=1e-14)
    cold = token_logprobs(logits, ids, temperature=0.5).tolist()[0]
    assert cold == pytest.approx([math.log(1 / 30), math.log(25 / 30)], rel=1e-14)


def test_entropy_by_hand():
    uniform = token_entropy(torch.zeros(1, 1, 8, dtype=torch.float64))
    assert uniform.item() == pytest.approx(math.log(8), rel=1e-14)
    half = token_entropy(torch.tensor([[[0.0, 0.0, -math.inf]]], dtype=torch.float64))
    assert half.item() == pytest.approx(math.log(2), rel=1e-14)
    assert token_entropy(torch.tensor([[[200.0, 0.0, 0.0]]])).item() == pytest.approx(0.0, abs=1e-12)


def test_full_kl_by_hand():
    # 1/8, 2/8, 5/8 against 2/8, 4/8, 2/8: 1/8 log 1/2 + 1/4 log 1/2 + 5/8 log 5/2
    logits = torch.tensor([[[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]], dtype=torch.float64).log()
    ref_logits = torch.tensor([[[1.0, 2.0, 1.0], [1.0, 2.0, 5.0]]], dtype=torch.float64).log()
    expected = 3 / 8 * math.log(1 / 2) + 5 / 8 * math.log(5 / 2)
    assert token_kl(logits, ref_logits).tolist()[0] == pytest.approx([expected, 0.0], rel=1e-14, abs=1e-15)
    # at temperature 0.5 the odds are squared: 1, 4, 25 of 30 against 1, 4, 1 of 6
    cold = (5 * math.log(1 / 5) + 25 * math.log(5)) / 30
    assert token_kl(logits, ref_logits, 0.5)[0, 0].item() == pytest.approx(cold, rel=1e-14)


def test_full_kl_of_excluded_tokens():
    both, one = torch.tensor([[[0.0, 0.0, -math.inf]]]), torch.tensor([[[0.0, 0.0, 0.0]]])
    assert token_kl(both, both).item() == 0.0
    assert token_kl(both, one).item() == pytest.approx(math.log(3 / 2))
    assert token_kl(one, both).item() == math.inf


def test_full_kl_is_what_the_estimators_guess():
    logits, ref_logits = noise(1, 9, scale=1.0), noise(1, 9, scale=1.0, seed=5)
    ids = torch.arange(9)
    rows = logits.expand(9, 9), ref_logits.expand(9, 9)
    logps, ref_logps = (token_logprobs(row, ids) for row in rows)
    for kind in ("k1", "k3"):
        mean = (logps.exp() * kl_estimate(logps, ref_logps, kind)).sum()
        assert token_kl(logits, ref_logits).item() == pytest.approx(mean.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("distance", [0.02, 3.0])
def test_full_kl_in_float32_against_float64(dtype, distance, monkeypatch):
    logits = noise(2, 4, 5000, scale=4.0)
    ref_logits = (logits + noise(2, 4, 5000, seed=7, scale=distance)).to(dtype)
    logits = logits.to(dtype)
    exact = torch.distributions.kl_divergence(
        *(torch.distributions.Categorical(logits=one.double() / 0.8) for one in (logits, ref_logits))
    )
    found = token_kl(logits, ref_logits, 0.8)
    assert found.dtype == torch.float32 and token_kl(logits.double(), ref_logits.double()).dtype == torch.float64
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    monkeypatch.setitem(module._BLOCK_ELEMENTS, "cpu", 7000)
    torch.testing.assert_close(token_kl(logits, ref_logits, 0.8), found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_both_match_the_oracle(temperature):
    logits, ids = noise(3, 5, 11), ids_for(3, 5, vocab=11)
    logps = token_logprobs(logits, ids, temperature)
    expected = oracles.token_logprobs(logits.tolist(), ids.tolist(), temperature)
    torch.testing.assert_close(logps, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    entropy = oracles.token_entropy(logits.tolist(), temperature)
    torch.testing.assert_close(
        token_entropy(logits, temperature), torch.tensor(entropy, dtype=torch.float64), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_gradients_are_the_derivatives(temperature):
    logits, ids = noise(2, 3, 5, scale=1.0).requires_grad_(), ids_for(2, 3, vocab=5)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids, temperature), (logits,))
    assert torch.autograd.gradcheck(lambda x: token_entropy(x, temperature), (logits,))


@pytest.mark.parametrize("shape", [(3, 7, 13), (21, 13)])
@pytest.mark.parametrize("limit", [1, 13, 40, 100, 10_000])
def test_blocks_of_any_size_give_the_same(shape, limit, monkeypatch):
    logits, ids = noise(*shape), ids_for(*shape[:-1], vocab=13)
    weights = noise(*shape[:-1], seed=2)

    def run():
        leaf = logits.clone().requires_grad_()
        logps, entropy = token_logprobs(leaf, ids, 0.9), token_entropy(leaf, 0.9)
        ((logps + 0.5 * entropy) * weights).sum().backward()
        return logps.detach(), entropy.detach(), leaf.grad

    whole = run()
    monkeypatch.setitem(module._BLOCK_ELEMENTS, "cpu", limit)
    for part, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 7, 13), (21, 13)])
@pytest.mark.parametrize("limit", [1, 13, 40, 100, 10_000])
def test_blocks_keep_to_their_limit_and_cover_every_row_once(shape, limit, monkeypatch):
    monkeypatch.setitem(module._BLOCK_ELEMENTS, "cpu", limit)
    logits, visits = torch.zeros(shape), torch.zeros(shape[:-1])
    for at in module._blocks(logits):
        assert logits[at].numel() <= max(limit, 13)
        visits[at] += 1
    assert torch.all(visits == 1)


def test_a_shifted_view_needs_no_contiguous_copy():
    logits, ids = noise(3, 6, 9).requires_grad_(), ids_for(3, 6, vocab=9)
    logps = token_logprobs(logits[:, :-1], ids[:, 1:])
    expected = oracles.token_logprobs(logits[:, :-1].tolist(), ids[:, 1:].tolist())
    torch.testing.assert_close(logps, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    logps.sum().backward()
    assert torch.all(logits.grad[:, -1] == 0) and torch.all(logits.grad[:, :-1].abs().sum(-1) > 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_logits_are_computed_in_float32(dtype):
    logits, ids = noise(2, 4, 5000, scale=4.0).to(dtype), ids_for(2, 4, vocab=5000)
    exact = oracles.token_logprobs(logits.double().tolist(), ids.tolist())  # of the rounded logits themselves
    logps, entropy = token_logprobs(logits, ids), token_entropy(logits)
    assert logps.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logps.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-6, atol=2e-6)
    exact_entropy = oracles.token_entropy(logits.double().tolist())
    torch.testing.assert_close(entropy.double(), torch.tensor(exact_entropy, dtype=torch.float64), rtol=2e-6, atol=1e-6)


def test_gradient_has_the_dtype_of_the_logits_and_is_rounded_once():
    logits, ids = noise(2, 3, 50).bfloat16().requires_grad_(), ids_for(2, 3, vocab=50)
    token_logprobs(logits, ids).sum().backward()
    exact = logits.detach().double().requires_grad_()
    token_logprobs(exact, ids).sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2**-8, atol=1e-7)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[[1e4, 0.0, -1e4]]])
    assert token_logprobs(logits, torch.tensor([[1]])).item() == -1e4
    assert token_entropy(logits).item() == 0.0


def test_excluded_tokens_have_no_probability_and_no_gradient():
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]], dtype=torch.float64, requires_grad=True)
    logps = token_logprobs(logits, torch.tensor([[2]]))
    assert logps.item() == pytest.approx(-math.log(2))
    (logps + token_entropy(logits)).sum().backward()
    assert logits.grad.tolist() == [[[-0.5, 0.0, 0.5]]]


def test_nan_logits_at_masked_positions_reach_neither_loss_nor_gradient(mask_BT, random_BT, poison):
    ids = ids_for(*mask_BT.shape, vocab=7)
    clean = noise(*mask_BT.shape, 7).requires_grad_()
    dirty = poison(clean, mask_BT.unsqueeze(-1).expand(-1, -1, 7)).requires_grad_()
    losses = []
    for logits in (clean, dirty):
        loss, _ = policy_loss(token_logprobs(logits, ids), random_BT(3) - 2.0, random_BT(4), mask_BT, 0.2)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1] and math.isfinite(losses[0])
    assert torch.equal(dirty.grad, clean.grad)
    assert torch.all(dirty.grad[mask_BT == 0] == 0) and torch.any(dirty.grad != 0)


def test_a_nan_that_counts_is_not_hidden():
    logits = torch.tensor([[[0.0, math.nan]]], requires_grad=True)
    logps = token_logprobs(logits, torch.tensor([[0]]))
    logps.sum().backward()
    assert math.isnan(logps.item()) and torch.isnan(logits.grad).any()


def test_backward_keeps_no_copy_of_the_logits():
    logits = noise(2, 3, 50).float().requires_grad_()
    logps = token_logprobs(logits, ids_for(2, 3, vocab=50))
    saved = logps.grad_fn.saved_tensors
    assert saved[0].data_ptr() == logits.data_ptr()
    assert sum(tensor.numel() for tensor in saved[1:]) == 6


def test_bad_input_is_refused():
    logits = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"ids_BT \(2, 2\)"):
        token_logprobs(logits, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="temperature must be above 0, found 0"):
        token_logprobs(logits, torch.zeros(2, 3, dtype=torch.int64), temperature=0)
    with pytest.raises(ValueError, match=r"ref_logits_BTV \(2, 3, 5\)"):
        token_kl(logits, torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="must be floats of shape"):
        token_entropy(torch.zeros(2, 3, 4, dtype=torch.int64))
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        token_logprobs(logits, torch.full((2, 3), -100))
