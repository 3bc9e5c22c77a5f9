import pytest
import torch

from align.trainers.ppo.minibatches import BatchSplitError, check_split, plan_minibatches, rank_share, shuffled


def plan(rank=0, world_size=1, micro=2):
    order = torch.tensor([6, 1, 0, 7, 3, 2, 5, 4])
    lengths = torch.tensor([4, 9, 9, 1, 5, 6, 2, 7])
    return [
        (rows.tolist(), [micro.tolist() for micro in micros])
        for rows, micros in plan_minibatches(order, lengths, 2, micro, rank, world_size)
    ]


def test_plan_by_hand():
    # lengths of the first minibatch's rows 6, 1, 0, 7 are 2, 9, 4, 7; of the second's rows 3, 2, 5, 4 are 1, 9, 6, 5
    assert plan() == [([6, 1, 0, 7], [[1, 7], [0, 6]]), ([3, 2, 5, 4], [[2, 5], [4, 3]])]
    assert plan(micro=3) == [([6, 1, 0, 7], [[1, 7, 0], [6]]), ([3, 2, 5, 4], [[2, 5, 4], [3]])]


def test_ranks_share_each_minibatch():
    assert plan(rank=0, world_size=2) == [([6, 1, 0, 7], [[1, 0]]), ([3, 2, 5, 4], [[2, 4]])]
    assert plan(rank=1, world_size=2) == [([6, 1, 0, 7], [[7, 6]]), ([3, 2, 5, 4], [[5, 3]])]


def test_rank_share_is_by_length_and_stable():
    assert rank_share([3, 5, 5, 1], 0, 1) == [1, 2, 0, 3]


def test_shuffled_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = shuffled(50, 7)
    torch.manual_seed(1)
    assert torch.equal(first, shuffled(50, 7))
    assert not torch.equal(first, shuffled(50, 8))
    assert sorted(first.tolist()) == list(range(50))


def test_impossible_splits_name_the_keys():
    check_split(prompts=6, num_generations=2, num_mini_batches=2, world_size=3)
    with pytest.raises(BatchSplitError, match=r"rollout_batch_size = 6 prompts .* 4 ranks"):
        check_split(6, 2, 2, 4)
    with pytest.raises(BatchSplitError, match=r"12 responses .*num_mini_batches = 5"):
        check_split(6, 2, 5, 1)
    with pytest.raises(BatchSplitError, match=r"multiple of 8"):
        check_split(6, 2, 4, 2)
