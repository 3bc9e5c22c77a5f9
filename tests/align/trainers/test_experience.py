import pytest
import torch

from align.trainers.ppo.experience import scatter_rows
from align.trainers.ppo.types import Experience, Samples, TokenBatch
from tests.align.trainers import ppo_case


def batch() -> TokenBatch:
    return TokenBatch.from_ids([(1, 2, 3), (4,)], [(5, 0), (6, 7, 8)], pad_id=0)


def test_masks_come_from_lengths_not_from_the_pad_id():
    made = batch()  # the reply of the first row ends with an id that equals the pad id
    assert made.input_ids_NT.tolist() == [[1, 2, 3, 5, 0], [4, 6, 7, 8, 0]]
    assert made.attention_mask_NT.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert made.mask_NS.int().tolist() == [[0, 0, 1, 1], [1, 1, 1, 0]]


def test_rows_are_cut_to_their_own_longest():
    short = batch().rows(torch.tensor([1]))
    assert short.input_ids_NT.tolist() == [[4, 6, 7, 8]]
    assert short.mask_NS.int().tolist() == [[1, 1, 1]]


def test_replies_to_one_prompt_bear_one_number():
    made = TokenBatch.from_ids([(1,)] * 6, [(2,), (3, 4), (5,), (6,), (7,), (8,)], num_generations=3)
    assert made.groups_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert made.rows(torch.tensor([4, 1])).groups_N.tolist() == [1, 0]
    assert made.to(torch.device("cpu")).groups_N.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("prompt", "reply", "what"), [((), (1,), "prompt"), ((1,), (), "reply")])
def test_empty_prompts_and_replies_are_refused(prompt, reply, what):
    with pytest.raises(ValueError, match=f"row 1 has an empty {what}"):
        TokenBatch.from_ids([(1,), prompt], [(2,), reply])


def test_experience_rows():
    tokens = batch()
    per_row, per_action = torch.tensor([10.0, 20.0]), torch.arange(8.0).view(2, 4)
    names = ("old_logps_NS", "ref_logps_NS", "old_values_NS", "rewards_NS", "advantages_NS", "returns_NS")
    made = Experience(
        tokens=tokens,
        mask_NS=tokens.mask_NS,
        scores_N=per_row,
        normalized_N=per_row + 1,
        **{name: per_action + 100 * i for i, name in enumerate(names)},
    )
    row = made.rows(torch.tensor([1]))
    assert row.scores_N.tolist() == [20.0] and row.normalized_N.tolist() == [21.0]
    assert row.old_logps_NS.tolist() == [[4.0, 5.0, 6.0]]
    assert row.returns_NS.tolist() == [[504.0, 505.0, 506.0]]


def test_scatter_rows():
    parts = [(torch.tensor([2]), torch.tensor([[1.0, 2.0]])), (torch.tensor([0]), torch.tensor([[3.0]]))]
    assert scatter_rows(parts, (3, 3)).tolist() == [[3, 0, 0], [0, 0, 0], [1, 2, 0]]


def test_samples_are_put_together_and_given_to_rewards():
    samples = ppo_case.samples((2, 3), finished=(True, False))
    both = Samples.concatenate([samples, samples])
    assert len(both) == 4 and both.reply_ids == samples.reply_ids * 2
    given = both.for_reward()[1]
    assert (given.prompt_ids, given.completion_ids, given.finished) == (
        samples.prompt_ids[1],
        samples.reply_ids[1],
        False,
    )
    assert given.columns == {"category": "say", "reference": None, "source": ""}
    assert both.for_reward(with_ids=False)[0].completion_ids is None
