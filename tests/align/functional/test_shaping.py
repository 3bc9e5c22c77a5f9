import pytest
import torch

from align.functional import shape_rewards
from tests import oracles

NAN = float("nan")


def test_by_hand():
    kls = torch.tensor([[0.5, -0.25, 1.0], [NAN, 2.0, NAN]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 0]])
    rewards = shape_rewards(torch.tensor([3.0, -1.0]), kls, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.25, 0.125, 3.0 - 0.5], [0.0, -1.0 - 1.0, 0.0]]


def test_matches_the_oracle_whatever_stands_at_masked_positions(random_BT, mask_BT, poison):
    scores, kls = random_BT(0)[:, 0], random_BT(1)
    expected = oracles.shape_rewards(scores.tolist(), kls.tolist(), mask_BT.tolist(), 0.04)
    rewards = shape_rewards(scores, poison(kls, mask_BT), mask_BT, 0.04)
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-15)


def test_without_penalty_every_reply_sums_to_its_score(random_BT, mask_BT):
    scores = random_BT(2)[:, 1]
    assert torch.equal(shape_rewards(scores, random_BT(3), mask_BT, 0.0).sum(1), scores)


def test_a_row_without_tokens_gets_nothing_and_a_nan_score_stays_in_its_row():
    mask = torch.tensor([[0, 0], [1, 1], [1, 0]])
    rewards = shape_rewards(torch.tensor([5.0, NAN, 2.0]), torch.ones(3, 2), mask, 1.0)
    assert rewards[0].tolist() == [0.0, 0.0]
    assert rewards[1, 0].item() == -1.0 and torch.isnan(rewards[1, 1])
    assert rewards[2].tolist() == [1.0, 0.0]
    assert shape_rewards(torch.ones(2), torch.ones(2, 0), torch.ones(2, 0), 1.0).shape == (2, 0)


def test_float64_scores_keep_float32_rewards():
    rewards = shape_rewards(torch.ones(1, dtype=torch.float64), torch.ones(1, 2), torch.ones(1, 2), 0.5)
    assert rewards.dtype == torch.float32 and rewards.tolist() == [[-0.5, 0.5]]


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"scores_B \(3,\)"):
        shape_rewards(torch.ones(3), torch.ones(2, 4), torch.ones(2, 4), 0.1)
    with pytest.raises(ValueError, match=r"mask_BT \(2, 5\)"):
        shape_rewards(torch.ones(2), torch.ones(2, 4), torch.ones(2, 5), 0.1)
