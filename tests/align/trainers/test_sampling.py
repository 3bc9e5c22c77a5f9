import itertools

import pytest

from align.trainers.sampling import StepSampler

LENGTHS = [5, 9, 1, 7, 3, 8, 2, 6, 4, 10]


def steps_of(sampler, micro_batches_per_step):
    batches = list(sampler)
    return [
        sorted(row for batch in batches[at : at + micro_batches_per_step] for row in batch)
        for at in range(0, len(batches), micro_batches_per_step)
    ]


def test_unshuffled_steps_by_hand():
    sampler = StepSampler(LENGTHS, rows_per_step=4, micro_batch_size=2, shuffle=False)
    # step 0 holds rows 0-3 (lengths 5, 9, 1, 7), longest first; the last step holds rows 8 and 9
    assert list(sampler) == [[1, 3], [0, 2], [5, 7], [4, 6], [9, 8]]
    assert len(sampler) == 5


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_rows_of_a_step_do_not_depend_on_the_micro_batch(micro):
    whole = StepSampler(LENGTHS, rows_per_step=4, micro_batch_size=4, seed=3)
    cut = StepSampler(LENGTHS, rows_per_step=4, micro_batch_size=micro, seed=3)
    assert steps_of(cut, 4 // micro) == steps_of(whole, 1)
    assert len(cut) == len(list(cut))


def test_ranks_share_a_step_without_repeating_a_row():
    one = StepSampler(LENGTHS, rows_per_step=4, micro_batch_size=4, seed=5)
    two = [
        StepSampler(LENGTHS, rows_per_step=4, micro_batch_size=1, world_size=2, rank=rank, seed=5) for rank in (0, 1)
    ]
    shares = [steps_of(sampler, 2) for sampler in two]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == steps_of(one, 1)
    assert len(two[0]) == len(two[1]) == len(list(two[0])) == len(list(two[1]))


def test_last_step_of_several_ranks_is_cut_to_a_multiple_of_them():
    three = [StepSampler(LENGTHS, rows_per_step=6, micro_batch_size=2, world_size=3, rank=rank) for rank in range(3)]
    rows = [row for sampler in three for batch in sampler for row in batch]
    assert len(rows) == len(set(rows)) == 9  # 6, then 3 of the remaining 4
    assert [len(sampler) for sampler in three] == [2, 2, 2] == [len(list(sampler)) for sampler in three]


def test_every_epoch_has_its_own_order_and_all_rows():
    sampler = StepSampler(LENGTHS, rows_per_step=10, micro_batch_size=10, seed=1)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        orders.append(sampler.order())
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    sampler.set_epoch(0)
    assert sampler.order() == orders[0]


def test_fewer_rows_than_ranks_is_one_clear_error():
    with pytest.raises(ValueError, match="1 training rows cannot be shared by 2 ranks"):
        StepSampler([3], rows_per_step=2, micro_batch_size=1, world_size=2)


MANY = [1 + (7 * at) % 100 for at in range(430)]


def test_grouped_steps_hold_rows_of_like_length_in_shuffled_order():
    grouped = StepSampler(MANY, rows_per_step=8, micro_batch_size=8, seed=2, group_by_length=True)
    plain = StepSampler(MANY, rows_per_step=8, micro_batch_size=8, seed=2)
    steps = list(grouped.steps())
    assert [len(step) for step in steps] == [8] * 53 + [6]
    assert sorted(row for step in steps for row in step) == list(range(430))

    def spread(sampler):
        spans = sorted(max(MANY[row] for row in step) - min(MANY[row] for row in step) for step in sampler.steps())
        return spans[len(spans) // 2]

    assert spread(grouped) < 10 < 60 < spread(plain)
    longest = [max(MANY[row] for row in step) for step in steps]
    falls = sum(later < earlier for earlier, later in itertools.pairwise(longest))
    assert 15 < falls < 40  # sorted steps would fall nearly always


@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (4, 2), (2, 4)])
def test_grouped_steps_depend_on_seed_and_epoch_alone(micro, ranks):
    def steps(epoch, micro, rank, ranks, seed=5):
        sampler = StepSampler(
            MANY,
            rows_per_step=16,
            micro_batch_size=micro,
            world_size=ranks,
            rank=rank,
            seed=seed,
            group_by_length=True,
        )
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return steps_of(sampler, 16 // ranks // micro)

    for epoch in (0, 3):
        shares = [steps(epoch, micro, rank, ranks) for rank in range(ranks)]
        together = [sorted(row for part in parts for row in part) for parts in zip(*shares, strict=True)]
        whole = steps(epoch, 16, 0, 1)
        assert together[:-1] == whole[:-1] and set(together[-1]) <= set(whole[-1])
    assert steps(0, 16, 0, 1) != steps(1, 16, 0, 1) and steps(0, 16, 0, 1) != steps(0, 16, 0, 1, seed=6)


def test_grouping_without_shuffling_is_refused():
    with pytest.raises(ValueError, match="group_by_length draws its order"):
        StepSampler(MANY, rows_per_step=8, micro_batch_size=8, shuffle=False, group_by_length=True)
