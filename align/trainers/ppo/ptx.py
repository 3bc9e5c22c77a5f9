"""The ptx stream: pretraining blocks mixed into PPO's policy updates against the alignment tax.

InstructGPT (Ouyang et al. 2022, appendix C.4) uses 8 pretraining examples an episode and multiplies their gradient by
27.8 without printing its loss reduction. Here `ptx_ratio` blocks come with every reply of a minibatch, their loss is
the mean negative log-likelihood a token over all of them, times `ptx_coef`, accumulated into the same optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from align.data.prompts import PromptSampler
from align.functional.linear_logprobs import TokenQuestion
from align.runtime.padding import pad_right
from align.trainers.causal_forward import ask_at
from align.trainers.head import unwrapped
from align.trainers.ppo.minibatches import rank_share

IGNORE = -100


class PtxStream:
    """Endless shuffled epochs over blocks of token ids, the same on all ranks; its state says where it stands.

    Args:
        blocks: token ids of each block, at least 2 tokens long.
        batch_size: blocks of one optimizer step over all ranks.
        micro_batch_size: blocks a rank holds at once.
        seed: of the shuffling.

    Attributes:
        max_z: for the log, of the last loss: its sum of the largest logits' squares. None where no such loss was made.
    """

    def __init__(
        self, blocks: Sequence[Sequence[int]], batch_size: int, micro_batch_size: int, seed: int, pad_id: int = 0
    ):
        self.blocks, self.micro_batch_size, self.pad_id = blocks, micro_batch_size, pad_id
        self.sampler = PromptSampler(len(blocks), batch_size, seed)
        self.max_z: Tensor | None = None

    def next(self, rank: int = 0, world_size: int = 1) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """The blocks of one optimizer step.

        Returns:
            This rank's micro-batches `(input_ids_BT, mask_BT)`, longest blocks first, and the number of predicted
            tokens over all ranks.
        """
        chosen = [self.blocks[index] for index in self.sampler.next()]
        mine = [chosen[i] for i in rank_share([len(block) for block in chosen], rank, world_size)]
        micros = [mine[i : i + self.micro_batch_size] for i in range(0, len(mine), self.micro_batch_size)]
        return [pad_right(micro, self.pad_id) for micro in micros], sum(len(block) - 1 for block in chosen)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.sampler.load_state_dict(state)


def ptx_loss_sum(
    model: torch.nn.Module, input_ids_BT: Tensor, mask_BT: Tensor, max_z_coef: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum over the block's tokens (all but the first) of their negative log-likelihood, in nats, temperature 1, and of
    `max_z_coef` times the square of the largest logit (Baichuan 2, 2309.10305); and of these squares, without gradient
    (0 without a factor).
    """
    next_BT = F.pad(torch.where(mask_BT != 0, input_ids_BT, IGNORE)[:, 1:], (0, 1), value=IGNORE)
    flat_N = (next_BT != IGNORE).flatten().nonzero().squeeze(-1)
    ids_N, inputs = next_BT.flatten()[flat_N], {"input_ids": input_ids_BT, "attention_mask": mask_BT}
    raw = unwrapped(model)
    question = TokenQuestion(ids_N, weights_N=torch.ones_like(ids_N), max_z_coef=max_z_coef)
    _, answers_NA = ask_at(model, raw, inputs, flat_N, question)
    squares = answers_NA[:, 1].detach().square().sum() if max_z_coef else answers_NA.new_zeros(())
    return -answers_NA[:, -1].sum(), squares
