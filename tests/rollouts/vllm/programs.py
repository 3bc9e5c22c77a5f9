"""Whole processes for tests of this folder: `python -m tests.rollouts.vllm.programs NAME` exits with 0 or fails."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import distributed

from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.vllm.client import Client
from rollouts.vllm.engine import VLLMEngine
from rollouts.vllm.process import ServerProcess
from rollouts.vllm.setup import serve_arguments, write_config
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
    """No group before: none afterwards; accelerate and training are undisturbed, and further engines start."""
    short_prompt_first()
    before = Accelerator(cpu=True)
    model = build()
    engine = engine_of(model)
    assert not distributed.is_initialized() and before.num_processes == 1
    first = step(model, before)
    engine.update_weights(weights(model), 2)
    other = engine_of(build(seed=5))  # beside the first
    agrees(engine, model)
    other.close()
    agrees(engine, model)
    engine.close()
    after = Accelerator(cpu=True)
    assert after.num_processes == 1 and not distributed.is_initialized()
    assert step(model, after) < first
    ranks()


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
    distributed.destroy_process_group()


def owner() -> None:
    """Owns a server until it is killed; prints the server's process, two folders that end with it, and its log."""
    folder, model = Path(tempfile.mkdtemp()), build()
    server = ServerProcess(start_timeout=600, owned_folders=[folder])
    server.client = Client(server.client.url, os.environ["SOME_KEY"])
    write_config(model, server.home)
    server.arguments = serve_arguments(model, server.home, settings(), "raw_logprobs")
    server.start()
    print(server.pid, server.home, folder, server.log, flush=True)
    time.sleep(3600)


PROGRAMS = {"alone": alone, "owner": owner}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
