"""The prompt sampler: epochs, reproducibility, resuming."""

import pytest

from align.data.prompts import PromptSampler
from data_formats import AlignError, DataError, EmptyDatasetError


def drawn(sampler, batches):
    return [sampler.next() for _ in range(batches)]


def test_every_index_comes_once_an_epoch():
    indices = [index for batch in drawn(PromptSampler(10, 4, seed=3), 5) for index in batch]
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert indices[:10] != indices[10:]


def test_same_seed_same_order_other_seed_another():
    first = drawn(PromptSampler(50, 8, seed=1), 20)
    assert drawn(PromptSampler(50, 8, seed=1), 20) == first
    assert drawn(PromptSampler(50, 8, seed=2), 20) != first


def test_a_batch_may_be_larger_than_the_set():
    batch = PromptSampler(3, 7, seed=0).next()
    assert len(batch) == 7 and sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("done", [0, 1, 3, 5, 7])
def test_resuming_continues_as_if_never_stopped(done):
    sampler = PromptSampler(12, 4, seed=5)
    drawn(sampler, done)
    state = sampler.state_dict()
    expected = drawn(sampler, 6)
    again = PromptSampler(12, 4, seed=5)
    again.load_state_dict(state)
    assert drawn(again, 6) == expected


def test_another_set_or_seed_cannot_be_resumed():
    state = PromptSampler(12, 4, seed=5).state_dict()
    with pytest.raises(DataError, match="made with size 12 of prompts, now it is 13"):
        PromptSampler(13, 4, seed=5).load_state_dict(state)
    with pytest.raises(DataError, match="made with seed 5"):
        PromptSampler(12, 4, seed=6).load_state_dict(state)


def test_impossible_sizes_are_refused():
    with pytest.raises(EmptyDatasetError, match="no prompts"):
        PromptSampler(0, 4, seed=0)
    with pytest.raises(AlignError, match="batch_size must be at least 1"):
        PromptSampler(4, 0, seed=0)
