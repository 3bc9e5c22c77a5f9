import pytest
import torch

from reward.protocol import RewardError
from reward.running import RunningMean


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
