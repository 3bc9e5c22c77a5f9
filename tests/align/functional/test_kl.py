import math

import pytest
import torch

from align.functional import kl_estimate
from tests import oracles


def test_estimates_by_hand():
    # policy 0.5, reference 0.25: d = log 2
    logp, ref = torch.tensor([0.5], dtype=torch.float64).log(), torch.tensor([0.25], dtype=torch.float64).log()
    assert kl_estimate(logp, ref, "k1").item() == pytest.approx(math.log(2), rel=1e-14)
    assert kl_estimate(logp, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2, rel=1e-14)
    assert kl_estimate(logp, ref, "k3").item() == pytest.approx(0.5 - 1 + math.log(2), rel=1e-13)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_estimates_match_the_oracle(kind, random_BT):
    logps, refs = random_BT(0) - 2, random_BT(1) - 2
    expected = [
        [oracles.kl(p, q, kind) for p, q in zip(row, ref_row, strict=True)]
        for row, ref_row in zip(logps.tolist(), refs.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        kl_estimate(logps, refs, kind), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative():
    policy, reference = [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]
    exact = math.fsum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    logps, refs = (torch.tensor(x, dtype=torch.float64).log() for x in (policy, reference))
    for kind in ("k1", "k3"):  # the expectation over the policy, exactly: sum of p times the estimate
        expectation = math.fsum(p * k for p, k in zip(policy, kl_estimate(logps, refs, kind).tolist(), strict=True))
        assert expectation == pytest.approx(exact, rel=1e-13)
    assert torch.all(kl_estimate(logps, refs, "k3") >= 0)
    assert kl_estimate(logps, refs, "k1").min() < 0


def test_k3_keeps_its_digits_near_zero():
    d = torch.tensor([2**-11, 3 * 2**-12, 5 * 2**-12, 7 * 2**-12])
    estimate = kl_estimate(d - 1.0, torch.full_like(d, -1.0), "k3").double()
    exact = torch.tensor([x * x / 2 - x**3 / 6 + x**4 / 24 for x in d.tolist()], dtype=torch.float64)
    torch.testing.assert_close(estimate, exact, rtol=1e-3, atol=0.0)  # exp(-d) - 1 + d in float32 is off by percents


def test_half_precision_is_widened():
    logps, refs = torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-1.0078125], dtype=torch.bfloat16)
    estimate = kl_estimate(logps, refs, "k1")
    assert estimate.dtype == torch.float32 and estimate.item() == 0.0078125


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown KL estimator 'k4': choose k1, k2 or k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
    with pytest.raises(ValueError, match="one shape"):
        kl_estimate(torch.zeros(2, 3), torch.zeros(2), "k1")
