"""Whole processes for `vllm/test_isolation.py`: `python -m tests.rollouts.vllm.programs NAME` exits with 0 or fails."""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator
from torch import distributed

from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.vllm.engine import VLLMEngine
from tests.rollouts.vllm.models import build, random_prompts, settings, weights

GREEDY = SamplingParams(temperature=0, max_new_tokens=16)
LONG = list(range(200))


def engine_of(model, **changes):
    engine = VLLMEngine(model, settings(**changes))
    engine.update_weights(weights(model), 1)
    return engine


def agrees(engine, model):
    prompts = [*random_prompts(8), LONG]
    ours, theirs = engine.generate(prompts, GREEDY), HFEngine(model, 0).generate(prompts, GREEDY)
    assert [reply.token_ids for reply in ours] == [reply.token_ids for reply in theirs]


def step(model, accelerator):
    """One optimizer step on the same tokens for all ranks; returns the loss."""
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    ids = torch.tensor([LONG[:20]])
    loss = prepared(input_ids=ids, labels=ids).loss
    accelerator.backward(loss)
    optimizer.step()
    return float(loss.detach())


def short_prompt_first() -> None:
    """The caller's first prompts in bfloat16 have 1 to 4 tokens: deadly for a CPU with AMX without the warming up."""
    model = build("qwen2-untied", dtype=torch.bfloat16)
    engine = engine_of(model)
    for length in (1, 2, 3, 4):
        assert len(engine.generate([[5] * length], GREEDY)[0].token_ids) == 16
    engine.close()


def alone() -> None:
    """No group before: none afterwards; accelerate and training are undisturbed, and a second engine starts."""
    before = Accelerator(cpu=True)
    model = build()
    engine = engine_of(model)
    assert not distributed.is_initialized() and before.num_processes == 1
    first = step(model, before)
    engine.update_weights(weights(model), 2)
    agrees(engine, model)
    engine.close()
    assert not distributed.is_initialized()
    engine = engine_of(model)
    agrees(engine, model)
    other = engine_of(build(seed=5))  # beside the first
    agrees(engine, model)
    other.close()
    agrees(engine, model)
    engine.close()
    after = Accelerator(cpu=True)
    assert after.num_processes == 1 and not distributed.is_initialized()
    assert step(model, after) < first
    distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    distributed.barrier()
    distributed.destroy_process_group()


def ranks() -> None:
    """A group before, of any size: it works while engines live and after they are closed; each rank has its own."""
    accelerator = Accelerator(cpu=True)
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    rank, size, group = distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD
    extra = distributed.new_group()

    def sums_agree():
        assert distributed.group.WORLD is group and distributed.get_rank() == rank
        for over in (None, extra):
            total = torch.tensor([float(rank + 1)])
            distributed.all_reduce(total, group=over)
            assert total.item() == size * (size + 1) / 2

    model = build(seed=rank)
    engine = engine_of(model)
    sums_agree()
    agrees(engine, model)  # other weights on every rank
    if rank == 0:
        agrees(engine, model)  # a rank alone
    trained = build(seed=9)
    step(trained, accelerator)
    engine.update_weights(weights(trained), 2)
    agrees(engine, trained)
    sums_agree()
    engine.close()
    sums_agree()
    engine = engine_of(model)
    agrees(engine, model)
    engine.close()
    sums_agree()
    distributed.destroy_process_group()


PROGRAMS = {
    "short-prompt-first": short_prompt_first,
    "alone": alone,
    "ranks": ranks,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
