import json
import math

import numpy as np
import pytest
import torch

from reward.protocol import RewardError
from reward.running import RunningMean, RunningMeanStd


def test_the_batch_is_counted_in_before_it_is_normalised():
    running = RunningMean()
    first = torch.tensor([1.0, 3.0])
    running.update(first)
    assert running.normalize(first).tolist() == [-1.0, 1.0]
    second = torch.tensor([[6.0, 10.0]])
    running.update(second)
    assert running.mean == 5.0
    assert running.normalize(second).tolist() == [[1.0, 5.0]]


def test_before_any_value_nothing_is_subtracted():
    assert RunningMean().normalize(torch.tensor([2.0])).tolist() == [2.0]


def test_two_ranks_count_the_same_global_batch():
    shards = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0])]
    stats = []
    for shard in shards:
        RunningMean().update(shard, reduce=lambda tensor: stats.append(tensor) or tensor)
    both = stats[0] + stats[1]
    for shard in shards:
        running = RunningMean()
        running.update(shard, reduce=lambda _: both)
        assert (running.count, running.mean) == (4, 4.0)


def test_a_rank_without_values_takes_part():
    running = RunningMean()
    running.update(torch.tensor([]), reduce=lambda stats: stats + torch.tensor([2.0, 6.0], dtype=torch.float64))
    assert running.mean == 3.0


def test_counts_in_float64():
    running = RunningMean()
    for value in (1e8, 1.0, 1.0):
        running.update(torch.tensor([value]))
    assert running.mean * 3 == pytest.approx(100_000_002.0, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_refused_and_change_nothing(bad):
    running = RunningMean()
    running.update(torch.tensor([4.0]))
    with pytest.raises(RewardError):
        running.update(torch.tensor([1.0, bad]))
    assert (running.count, running.mean) == (1, 4.0)


def test_state_round_trip_continues_exactly():
    straight, first = RunningMean(), RunningMean()
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    for value in values.split(4):
        straight.update(value)
    for value in values[:8].split(4):
        first.update(value)
    second = RunningMean()
    second.load_state_dict(first.state_dict())
    for value in values[8:].split(4):
        second.update(value)
    assert second.state_dict() == straight.state_dict()


def test_normalize_keeps_the_dtype():
    running = RunningMean()
    running.update(torch.tensor([1.0]))
    assert running.normalize(torch.tensor([2.0], dtype=torch.float32)).dtype == torch.float32


def test_mean_and_deviation_are_those_of_all_values_so_far():
    values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
    running = RunningMeanStd()
    for part in np.split(values, [1, 7, 400]):
        running.update(torch.from_numpy(part))
    assert running.count == 1000
    assert running.mean == pytest.approx(values.mean(), rel=1e-14)
    assert running.std == pytest.approx(values.std(), rel=1e-13)  # numpy's default is the population's
    found = running.normalize(torch.tensor([1.0, 5.0], dtype=torch.float64)).tolist()
    assert found == pytest.approx(((np.array([1.0, 5.0]) - values.mean()) / values.std()).tolist(), rel=1e-7)


def test_deviation_by_hand_the_batch_counted_in_first():
    running = RunningMeanStd(eps=0.5)
    first = torch.tensor([1.0, 3.0])
    running.update(first)
    assert (running.mean, running.std) == (2.0, 1.0)
    assert running.normalize(first).tolist() == pytest.approx([-1 / 1.5, 1 / 1.5])
    running.update(torch.tensor([[5.0], [7.0]]))
    assert (running.mean, running.std) == (4.0, math.sqrt(5.0))
    assert RunningMeanStd().normalize(torch.tensor([0.0])).tolist() == [0.0]


def test_equal_values_become_zero():
    running = RunningMeanStd()
    running.update(torch.full((4,), 0.1))
    assert running.normalize(torch.full((2,), 0.1)).abs().max() < 1e-6


@pytest.mark.parametrize("count", [0, 1, 4])
def test_without_a_deviation_nothing_is_divided(count):
    running = RunningMeanStd(shift=False)
    running.update(torch.full((count,), 0.7))
    running.update(torch.full((count,), 0.7))
    assert running.normalize(torch.tensor([0.7, -2.0])).tolist() == pytest.approx([0.7, -2.0])


def test_a_large_offset_does_not_cancel_the_deviation():
    running, values = RunningMeanStd(), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    for value in values:
        running.update(value[None] + 1e9)
    assert running.std == pytest.approx(float(values.std(unbiased=False)), rel=1e-9)


def test_ranks_of_unequal_shares_get_the_statistics_of_the_whole():
    """The two sums of every rank are collected first, then handed to each: what an all-reduce does."""
    shards = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([10.0]), torch.tensor([])]
    sums: list[torch.Tensor] = []
    for _ in range(2):  # the first sum is known to the second pass
        calls: list[list[torch.Tensor]] = []
        for shard in shards:
            own: list[torch.Tensor] = []
            replies = iter(sums)
            RunningMeanStd().update(shard, lambda x, own=own, replies=replies: own.append(x) or next(replies, x))
            calls.append(own)
        sums = [sum(column) for column in zip(*calls, strict=True)]
    for shard in shards:
        replies = iter(sums)
        running = RunningMeanStd()
        running.update(shard, lambda _, replies=replies: next(replies))
        assert (running.count, running.mean) == (4, 4.75)
        assert running.std == pytest.approx(np.std([1.0, 2.0, 6.0, 10.0]), rel=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_leave_mean_and_deviation_unchanged(bad):
    running = RunningMeanStd()
    running.update(torch.tensor([4.0, 6.0]))
    before = running.state_dict()
    with pytest.raises(RewardError, match="NaN or infinity"):
        running.update(torch.tensor([1.0, bad]))
    assert running.state_dict() == before


def test_deviation_state_round_trip_continues_exactly():
    straight, first, second = RunningMeanStd(), RunningMeanStd(), RunningMeanStd()
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    for value in values.split(4):
        straight.update(value)
    for value in values[:8].split(4):
        first.update(value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for value in values[8:].split(4):
        second.update(value)
    assert second.state_dict() == straight.state_dict()
