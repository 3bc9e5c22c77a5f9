"""vLLM in this process and as a server: pushes, adapters, sleep, what could be drawn, log-probabilities. What sleeps
and wakes is held by the tests marked `gpu`; they are run here too."""

from __future__ import annotations

import random
import time
from typing import Any

from check import Here, Skip
from smoke import pytest_figures
from stages import TINY, need, shape_of

ROOM = 300  # tokens


def policy(here: Here, seed: int = 0) -> Any:
    """Qwen2.5-0.5B's widths and two layers, in bfloat16; tiny and in float32 on a CPU."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = TINY if here.dry else {**shape_of("Qwen2.5-0.5B"), "num_hidden_layers": 2}
    options = {"max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2, "initializer_range": 0.1}
    torch.manual_seed(seed)
    made = Qwen2ForCausalLM(Qwen2Config(**shape, **options)).eval()
    return made.to(here.device, torch.float32 if here.dry else torch.bfloat16)


def little(here: Here) -> Any:
    """Settings with little memory and no compilation: starting costs the time here."""
    from rollouts.settings import VLLMSettings

    return VLLMSettings(max_model_len=ROOM, kv_cache_gib=0.05 if here.dry else 0.5, eager=True)


def sequences(vocabulary: int) -> list[list[int]]:
    """Four, longer than a block of the cache."""
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(length)] for length in (150, 200, 17, 90)]


def differences(engine: Any, model: Any) -> dict[str, float]:
    """Nats a token between the engine's log-probabilities and those of transformers, of fixed sequences and of what
    the engine draws."""
    from rollouts.hf import HFEngine
    from rollouts.protocol import SamplingParams

    ids = sequences(model.config.vocab_size)
    trainer = HFEngine(model, 0)
    pairs = zip(engine.token_logprobs(ids), trainer.token_logprobs(ids), strict=True)
    scored = [abs(one - other) for ours, theirs in pairs for one, other in zip(ours, theirs, strict=True)]
    replies = engine.generate(ids, SamplingParams(max_new_tokens=16, seed=0))
    again = trainer.token_logprobs([prompt + list(reply.token_ids) for prompt, reply in zip(ids, replies, strict=True)])
    drawn = [
        abs(one - other)
        for reply, theirs in zip(replies, again, strict=True)
        for one, other in zip(reply.logprobs, theirs[-len(reply.token_ids) :], strict=True)
    ]
    found = {"scored, mean": sum(scored) / len(scored), "scored, most": max(scored), "drawn, most": max(drawn)}
    allowed = 0.002 if str(model.dtype) == "torch.float32" else 1.0
    if max(found.values()) > allowed:
        raise ValueError(f"engine and trainer differ by {found} nats a token")
    return found


def pushed(engine: Any, model: Any, push: Any, *what: Any) -> dict[str, float]:
    """Seconds of `push(*what)`, and the differences after it."""
    began = time.perf_counter()
    push(*what)
    return {"push, s": time.perf_counter() - began} | differences(engine, model)


def in_process(here: Here) -> dict[str, Any]:
    """Two pushes and the probe after each."""
    need("vllm", here, on_cpu=True)
    from rollouts.vllm.engine import VLLMEngine
    from rollouts.weights import checkpoint_tensors

    began = time.perf_counter()
    first, second = policy(here), policy(here, 1)
    engine = VLLMEngine(first, little(here))
    found = {"start, s": time.perf_counter() - began}
    try:
        for version, model in enumerate((first, second), start=1):
            found |= pushed(engine, model, engine.update_weights, checkpoint_tensors(model), version)
    finally:
        engine.close()
    return found


def adapter(here: Here) -> dict[str, Any]:
    """A LoRA adapter pushed by itself, twice; the second must be heard."""
    here.card_only("an adapter by itself")
    need("vllm", here)
    import torch
    from peft import LoraConfig, get_peft_model

    from rollouts.vllm.engine import VLLMEngine
    from rollouts.weights import adapter_tensors, checkpoint_tensors

    model = get_peft_model(policy(here), LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    engine = VLLMEngine(model, little(here), takes_adapters=True)
    found: dict[str, Any] = {}
    try:
        engine.update_weights(checkpoint_tensors(model, merge=False), 1)
        for version in (2, 3):
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.02)
            found |= pushed(engine, model, engine.update_adapter, *adapter_tensors(model), version)
    finally:
        engine.close()
    return found


def sleeping(here: Here) -> dict[str, Any]:
    """vLLM's tests marked `gpu`: sleep and wake with and without a push, and what top-k and top-p leave."""
    here.card_only("sleeping")
    need("vllm", here)
    return pytest_figures("-m", "gpu", "tests/rollouts/vllm/test_gpu.py")


def server(here: Here) -> dict[str, Any]:
    """A server of our own: weights by file, then other ones over HTTP; the probe after each."""
    if here.dry:
        raise Skip("a dry run starts vLLM once, in this process")
    need("vllm", here)
    from dataclasses import replace

    from rollouts.vllm.server_engine import VLLMServerEngine
    from rollouts.weights import checkpoint_tensors

    began, model = time.perf_counter(), policy(here)
    engine = VLLMServerEngine(model, little(here))
    found = {"start, s": time.perf_counter() - began}
    try:
        found |= pushed(engine, model, engine.update_weights, checkpoint_tensors(model), 1)
        servers, other = engine._servers, policy(here, 1)
        servers.take([replace(place, sees=False) for place in servers.places])  # as if it were on another machine
        over = pushed(engine, other, engine.update_weights, checkpoint_tensors(other), 2)
        return found | {f"over HTTP: {name}": figure for name, figure in over.items()}
    finally:
        engine.close()


def native(here: Here) -> dict[str, Any]:
    """vLLM's own transfer of weights between processes."""
    raise Skip("weights reach a server by files or over HTTP; why not by NCCL or IPC: docs/rollouts.md")


CASES = {
    "in this process": in_process,
    "sleep, wake, support": sleeping,
    "adapter": adapter,
    "server": server,
    "server, native transfer": native,
}
