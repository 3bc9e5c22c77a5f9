import dataclasses
from itertools import groupby

import pytest
import torch

from align.trainers.ppo.minibatches import BatchSplitError, Room, check_split, plan_minibatches, rank_share, shuffled
from align.trainers.ppo.types import reply_groups


def plan(rank=0, world_size=1, micro=2):
    order = torch.tensor([6, 1, 0, 7, 3, 2, 5, 4])
    room = Room([1] * 8, [4, 9, 9, 1, 5, 6, 2, 7], max_rows=micro)
    return listed(plan_minibatches(order, room, 2, rank, world_size))


def listed(plan):
    return [(rows.tolist(), [micro.tolist() for micro in micros]) for rows, micros in plan]


def test_plan_by_hand():
    # lengths of the first minibatch's rows 6, 1, 0, 7 are 2, 9, 4, 7; of the second's rows 3, 2, 5, 4 are 1, 9, 6, 5
    assert plan() == [([6, 1, 0, 7], [[1, 7], [0, 6]]), ([3, 2, 5, 4], [[2, 5], [4, 3]])]
    assert plan(micro=3) == [([6, 1, 0, 7], [[1, 7, 0], [6]]), ([3, 2, 5, 4], [[2, 5, 4], [3]])]


def test_ranks_share_each_minibatch():
    assert plan(rank=0, world_size=2) == [([6, 1, 0, 7], [[1, 0]]), ([3, 2, 5, 4], [[2, 4]])]
    assert plan(rank=1, world_size=2) == [([6, 1, 0, 7], [[7, 6]]), ([3, 2, 5, 4], [[5, 3]])]


def test_tokens_bound_a_micro_batch_and_one_longer_row_stands_alone():
    room = Room([1] * 8, [4, 9, 9, 1, 5, 6, 2, 7], max_tokens=8)
    # 9 is longer than the room; 7, 4, 2 padded to 7 are too many, 4 and 2 take 8; of 6, 5, 1 only 1 goes with another
    plan = listed(plan_minibatches(torch.tensor([6, 1, 0, 7, 3, 2, 5, 4]), room, 2))
    assert plan == [([6, 1, 0, 7], [[1], [7], [0, 6]]), ([3, 2, 5, 4], [[2], [5], [4], [3]])]
    both = dataclasses.replace(room, max_tokens=21, max_rows=2)
    assert [micros for _, micros in listed(plan_minibatches(torch.arange(8), both, 1))] == [
        [[1, 2], [7, 5], [4, 0], [6, 3]]
    ]


def test_replies_that_share_their_prompt_stay_together():
    #            prompt 10, replies 1 and 5; 2, 3 and 3; 4, 20 and 2; 6, 1 and 1
    room = Room([10, 10, 2, 2, 4, 4, 6, 6], [11, 15, 5, 5, 24, 6, 7, 7], [0, 0, 1, 1, 2, 2, 3, 3], max_tokens=24)
    order = torch.tensor([4, 5, 2, 3, 6, 7, 0, 1])
    # groups cost 16, 8, 26, 8: the third is too large and is cut into its rows, 24 and 6 tokens
    assert listed(plan_minibatches(order, room, 2)) == [
        ([4, 5, 2, 3], [[4], [5, 2, 3]]),
        ([6, 7, 0, 1], [[0, 1, 6, 7]]),
    ]
    few = dataclasses.replace(room, max_tokens=None, max_rows=3)
    assert listed(plan_minibatches(order, few, 1))[0][1] == [[4, 5], [0, 1], [2, 3], [6, 7]]


@pytest.mark.parametrize(
    ("prompts", "generations", "minis", "world_size"),
    [(6, 2, 1, 3), (6, 3, 1, 2), (4, 4, 8, 2), (6, 5, 3, 2), (3, 4, 2, 3)],
)
def test_ranks_make_as_many_passes_of_whole_groups_where_these_divide(prompts, generations, minis, world_size):
    generator = torch.Generator().manual_seed(prompts)
    replies = torch.randint(1, 40, (prompts * generations,), generator=generator)
    groups = reply_groups(len(replies), generations).tolist()
    prompt_lengths = [3 + 2 * group for group in groups]
    lengths = [length + int(reply) for length, reply in zip(prompt_lengths, replies, strict=True)]
    room = Room(prompt_lengths, lengths, groups, max_tokens=60)
    order = (shuffled(prompts, 3)[:, None] * generations + torch.arange(generations)).flatten()
    plans = [plan_minibatches(order, room, minis, rank, world_size) for rank in range(world_size)]
    for at in range(minis):
        rows, shares = plans[0][at][0], [plan[at][1] for plan in plans]
        assert len({len(share) for share in shares}) == len({sum(map(len, share)) for share in shares}) == 1
        assert sorted(row for share in shares for micro in share for row in micro.tolist()) == sorted(rows.tolist())
        for micro in (micro.tolist() for share in shares for micro in share):
            assert len(micro) == 1 or room.cost(micro) <= 60
            assert len(list(groupby(micro, groups.__getitem__))) == len({groups[row] for row in micro})
    whole = len(order) // minis % (generations * world_size) == 0
    owners = {(at, groups[int(row)]): set() for at in range(minis) for row in plans[0][at][0]}
    for rank, plan in enumerate(plans):
        for at, (_, micros) in enumerate(plan):
            for row in torch.cat(micros).tolist():
                owners[at, groups[row]].add(rank)
    assert not whole or all(len(ranks) == 1 for ranks in owners.values())


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
