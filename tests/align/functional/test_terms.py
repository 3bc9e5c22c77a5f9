"""The terms and weights beside the two losses: by hand, and against float64 loops written here."""

import math

import pytest
import torch

from align.functional import importance_weights, kl_loss, penalize, policy_loss, token_weights, value_loss

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
NAN = math.nan


def test_weights_of_tokens_by_hand():
    assert token_weights(MASK, "token").tolist() == MASK.tolist()
    third = pytest.approx(1 / 3)
    assert token_weights(MASK, "sequence").tolist() == [[third, third, third, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match="unknown aggregation 'mean': choose token or sequence"):
        token_weights(MASK, "mean")


def test_weighted_losses_are_sums_of_weighted_terms():
    generator = torch.Generator().manual_seed(0)
    a, b, c, weights = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(4))
    mask = torch.ones(2, 3)
    for loss in (
        lambda rows, w: policy_loss(a[rows], b[rows], c[rows], mask[rows], 0.2, weights_BT=w)[0],
        lambda rows, w: value_loss(a[rows], b[rows], c[rows], mask[rows], 0.3, weights_BT=w)[0],
        lambda rows, w: kl_loss(a[rows], b[rows], mask[rows], "k2", weights_BT=w)[0],
    ):
        alone = [
            float(weights[i, j] * loss((slice(i, i + 1), slice(j, j + 1)), None)) for i in range(2) for j in range(3)
        ]
        assert float(loss((slice(None), slice(None)), weights)) == pytest.approx(sum(alone), rel=1e-12)


def test_importance_weights_by_hand():
    logps = torch.tensor([[math.log(0.5), math.log(0.6), NAN], [math.log(0.2), NAN, NAN]], dtype=torch.float64)
    sampler = torch.tensor([[math.log(0.25), math.log(0.1), NAN], [math.log(0.4), NAN, NAN]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    weights, stats = importance_weights(logps, sampler, mask, "token", cap=3.0)
    assert weights.tolist() == [[pytest.approx(2), 3, 1], [pytest.approx(0.5), 1, 1]]  # 6 is capped
    assert {key: float(value) for key, value in stats.items()} == pytest.approx(
        {"mean": 5.5, "truncated": 1.0, "tokens": 3.0}
    )
    weights, stats = importance_weights(logps, sampler, mask, "sequence", cap=20.0)
    assert weights.tolist() == [[pytest.approx(12), pytest.approx(12), 1], [pytest.approx(0.5), 1, 1]]
    assert float(stats["truncated"]) == 0
    with pytest.raises(ValueError, match="unknown level 'word'"):
        importance_weights(logps, sampler, mask, "word", 2.0)


def test_the_dual_clip_bounds_bad_tokens_alone():
    ratio = torch.tensor([[5.0, 5.0, 2.0]], dtype=torch.float64)
    logps = ratio.log().requires_grad_()
    advantages = torch.tensor([[-1.0, 1.0, -1.0]], dtype=torch.float64)
    loss, stats = policy_loss(logps, torch.zeros_like(ratio), advantages, torch.ones(1, 3), 0.2, dual_clip=3.0)
    assert loss.item() == pytest.approx(3.0 - 1.2 + 2.0)  # 5 is held at 3, 5 is clipped at 1.2, 2 stays
    assert (float(stats["dual_clipped"]), float(stats["clipped"])) == (1.0, 1.0)
    loss.backward()
    assert logps.grad.tolist() == [[0.0, 0.0, pytest.approx(2.0)]]
    with pytest.raises(ValueError, match=r"dual_clip must be above 1, found 1\.0"):
        policy_loss(logps, logps, advantages, torch.ones(1, 3), 0.2, dual_clip=1.0)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_kl_term_by_loops(kind):
    generator = torch.Generator().manual_seed(3)
    logps, ref = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    given = torch.where(MASK != 0, logps, NAN).requires_grad_()
    loss, stats = kl_loss(given, torch.where(MASK != 0, ref, NAN), MASK, kind)
    loss.backward()
    total, slopes = 0.0, [[0.0] * 4 for _ in range(3)]
    for row in range(3):
        for t in range(4):
            if not MASK[row, t]:
                continue
            d = float(logps[row, t] - ref[row, t])
            total += {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[kind]
            slopes[row][t] = sum(float(logps[row, s] - ref[row, s]) for s in range(t, 4) if MASK[row, s])
    assert loss.item() == pytest.approx(total, rel=1e-12) and float(stats["estimate"]) == pytest.approx(total)
    assert given.grad.tolist() == [[pytest.approx(slope, rel=1e-12) for slope in row] for row in slopes]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [4.0, 5.0]),
        ({"missing_eos_penalty": 2.0}, [4.0, 3.0]),
        ({"length_penalty": 0.5}, [3.0, 1.0]),
        ({"missing_eos_penalty": 1.0, "length_penalty": 0.5, "length_penalty_free": 3}, [4.0, 1.5]),
    ],
)
def test_penalties_by_hand(how, expected):
    scores, ended, lengths = torch.tensor([4.0, 5.0]), torch.tensor([True, False]), torch.tensor([2, 8])
    assert penalize(scores, ended, lengths, **how).tolist() == expected
