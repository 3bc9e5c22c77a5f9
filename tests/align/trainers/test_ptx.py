import pytest
import torch

from align.trainers.ppo.ptx import PtxStream, ptx_loss_sum
from tests.align.trainers import ppo_case

BLOCKS = [[1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15, 16]]


def ids(micros) -> list[list[int]]:
    return [row[: int(mask.sum())].tolist() for batch, masks in micros for row, mask in zip(batch, masks, strict=True)]


def test_an_endless_stream_of_whole_epochs():
    stream = PtxStream(BLOCKS, batch_size=3, micro_batch_size=2, seed=0)
    seen = [block for _ in range(5) for block in ids(stream.next()[0])]
    assert sorted(seen) == sorted(BLOCKS * 3)


def test_token_count_is_that_of_all_ranks_and_ranks_share_the_blocks():
    alone, ranks = PtxStream(BLOCKS, 4, 1, seed=3), [PtxStream(BLOCKS, 4, 1, seed=3) for _ in range(2)]
    whole, tokens = alone.next()
    shares = [stream.next(rank, 2) for rank, stream in enumerate(ranks)]
    assert [count for _, count in shares] == [tokens, tokens]
    assert sorted(ids(shares[0][0]) + ids(shares[1][0])) == sorted(ids(whole))
    assert tokens == sum(len(block) - 1 for block in ids(whole))


def test_the_state_continues_the_stream():
    first, second = PtxStream(BLOCKS, 2, 2, seed=1), PtxStream(BLOCKS, 2, 2, seed=1)
    for _ in range(4):
        first.next()
    second.load_state_dict(first.state_dict())
    assert [ids(first.next()[0]) for _ in range(3)] == [ids(second.next()[0]) for _ in range(3)]


def test_nll_is_that_of_each_block_alone():
    model = ppo_case.exact(ppo_case.policy())
    batch = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    expected = squares = 0.0
    for block in ([1, 2, 3], [4, 5, 6, 7]):
        logits = model(input_ids=torch.tensor([block])).logits[0].detach()
        expected -= sum(float(torch.log_softmax(logits, dim=-1)[t, block[t + 1]]) for t in range(len(block) - 1))
        squares += sum(float(logits[t].max()) ** 2 for t in range(len(block) - 1))
    assert float(ptx_loss_sum(model, batch, mask)[0]) == pytest.approx(expected, rel=1e-12)
    found = ptx_loss_sum(model, batch, mask, max_z_coef=0.1)
    assert [float(one) for one in found] == pytest.approx([expected + 0.1 * squares, squares], rel=1e-12)


def test_the_gradient_norm_ratio_by_hand(tmp_path):
    def gradients(folder, ptx_coef):
        trainer = ppo_case.trainer(
            folder,
            kind=ppo_case.Recorder,
            reward=ppo_case.length_score,
            num_mini_batches=1,
            num_iterations=1,
            ptx_coef=ptx_coef,
            ptx_ratio=1,
            ptx_blocks=BLOCKS,
        )
        trainer.given = [ppo_case.samples((5, 1, 7, 3, 2, 6, 4, 7))]
        metrics = trainer.step()
        return torch.cat([gradient.flatten() for gradient in trainer.steps[0][1]["policy"]]), metrics

    alone, _ = gradients(tmp_path / "a", 0.0)
    both, metrics = gradients(tmp_path / "b", 0.5)
    assert metrics["ptx/grad_norm_ratio"] == pytest.approx(float((both - alone).norm() / alone.norm()), rel=1e-3)


def test_without_a_ppo_gradient_the_automatic_coefficient_stays(tmp_path):
    trainer = ppo_case.trainer(
        tmp_path,
        kind=ppo_case.Recorder,
        mask_truncated_completions=True,
        ptx_coef="auto",
        ptx_ratio=1,
        ptx_blocks=BLOCKS,
    )
    trainer.given = [ppo_case.samples((5, 1, 7, 3, 2, 6, 4, 7), finished=[False] * 8)]
    metrics = trainer.step()
    assert metrics["ptx/coef"] == pytest.approx(0.1) and trainer.ptx_coef.coef == 0.1
    assert metrics["ptx/loss"] > 0 and "ptx/grad_norm_ratio" not in metrics
