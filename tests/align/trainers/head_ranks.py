"""Started by torchrun: two ranks of DDP, a head that answers in blocks; the first rank writes the gradients."""

import sys
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from align.trainers import head
from align.trainers.forward import reply_distribution
from tests.align.trainers import ppo_case
from tests.align.trainers.test_head import BATCH
from tests.ranks import leave, say_where_it_waits


def gradients(model: torch.nn.Module, raw: torch.nn.Module, rows: list[int]) -> dict[str, torch.Tensor]:
    """Of a loss over log-probabilities and entropies of some of the rows, checkpointed or not."""
    found = reply_distribution(model, BATCH.rows(torch.tensor(rows)), 0.5, entropy=True)
    (found.full.sum() + 0.1 * found.entropy.sum()).backward()
    return {name: part.grad.clone() for name, part in raw.named_parameters()}


def main() -> None:
    dist.init_process_group("gloo")
    model = ppo_case.exact(ppo_case.policy())
    wrapped = DistributedDataParallel(model)
    with mock.patch.object(head, "BLOCK_LOGITS", 259 * 2):
        found = gradients(wrapped, model, [[0, 1], [2]][dist.get_rank()])
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[1])


if __name__ == "__main__":
    say_where_it_waits()
    main()
    leave()
