"""Prompts computed once, in the card's own ways of attention: the same numbers, and how much faster."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from check import Here
from environment import seconds
from stages import TINY, shape_of

GROUPS = [(700, [500, 300, 250, 400]), (350, [128] * 8), (1000, [600, 200])]
FEW = [(7, [5, 3]), (4, [2, 2, 9])]
HEADS, KEYS, WIDTH = 14, 2, 64  # of Qwen2.5-0.5B


def attention(here: Here, dtype: str) -> dict[str, Any]:
    """Outputs and gradients of the way this dtype goes, against float64 part by part on the host; the rounding of one
    plain call in that dtype beside."""
    import torch
    from torch.nn import functional as F

    from reward import flat

    parts = flat.Parts(FEW if here.dry else GROUPS)
    length = sum(parts.lengths)
    torch.manual_seed(0)
    wide = [torch.randn(1, heads, length, WIDTH, dtype=torch.float64) for heads in (HEADS, KEYS, KEYS, HEADS)]

    def made(device: str, kind: torch.dtype) -> list[Any]:
        return [states.to(device, kind).requires_grad_(at < 3) for at, states in enumerate(wide)]

    def gradients(given: list[Any], found: Any) -> list[Any]:
        return [found.detach(), *torch.autograd.grad((found * given[3]).sum(), given[:3])]

    exact = made("cpu", torch.float64)
    wanted = gradients(exact, flat.by_part(*exact[:3], parts, 0.0, None))
    own = made(here.device, getattr(torch, dtype))
    way = flat.by_varlen if flat.takes_varlen(own[2], 0.0) else flat.by_padding
    found = gradients(own, way(*own[:3], parts, 0.0, None))
    pairs = zip(found, wanted, strict=True)
    apart = [float((one.double().cpu() - other).abs().max() / other.abs().max()) for one, other in pairs]
    allowed = {"float32": 1e-4, "bfloat16": 3e-2}[dtype]
    if max(apart) > allowed:
        raise ValueError(f"{way.__name__} is off by {apart} of the largest (output, gradients of q, k, v)")

    def alone() -> Any:
        rows = [(prompt + reply) for prompt, replies in parts.groups for reply in replies]
        shape = (len(rows), HEADS, max(rows), WIDTH)
        return torch.randn(shape, device=here.device, dtype=getattr(torch, dtype))

    padded = alone()
    shared = seconds(here, lambda: way(*own[:3], parts, 0.0, None))
    apart_rows = seconds(here, lambda: F.scaled_dot_product_attention(padded, padded, padded, is_causal=True))
    return {
        "way": way.__name__,
        "largest difference": max(apart),
        "ms": 1e3 * shared,
        "ms of padded rows, each with its prompt": 1e3 * apart_rows,
    }


def model(here: Here, dtype: str = "bfloat16", layers: int = 8) -> Any:
    """Qwen2.5-0.5B's widths on the card, of fewer layers."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = TINY if here.dry else {**shape_of("Qwen2.5-0.5B"), "num_hidden_layers": layers}
    torch.manual_seed(0)
    with torch.device(here.device):
        return Qwen2ForCausalLM(Qwen2Config(**shape, max_position_embeddings=8192)).to(getattr(torch, dtype)).eval()


def rows(here: Here, vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and replies, row by row, of the groups."""
    draw, prompts, replies = random.Random(0), [], []
    for prompt, lengths in FEW if here.dry else GROUPS:
        ids = [draw.randrange(vocabulary) for _ in range(prompt)]
        prompts += [ids] * len(lengths)
        replies += [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths]
    return prompts, replies


def policy(here: Here) -> dict[str, Any]:
    """Log-probabilities of PPO's pass with shared prompts, and of a plain forward a reply, both against float32."""
    import torch

    from align.trainers.ppo.forward import reply_logprobs, shares_prompts
    from align.trainers.ppo.types import TokenBatch

    policy, wide = model(here), model(here, "float32")
    wide.load_state_dict(policy.state_dict())
    prompts, replies = rows(here, policy.config.vocab_size)
    batch = TokenBatch.from_ids(prompts, replies).to(torch.device(here.device))
    if not shares_prompts(policy):
        raise RuntimeError("its prompts are not shared")

    @torch.no_grad()
    def plain(one: Any) -> Any:
        found = torch.zeros(batch.mask_NS.shape, device=here.device)
        for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            ids = torch.tensor([prompt + reply], device=here.device)
            logps = one(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            drawn = logps.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            found[row, len(prompt) - 1 : len(prompt) - 1 + len(reply)] = drawn
        return found

    with torch.no_grad():
        shared, alone, exact = reply_logprobs(policy, batch, 1.0), plain(policy), plain(wide)
    errors = [float((one - exact)[batch.mask_NS].abs().mean()) for one in (shared, alone)]
    if errors[0] > 1.5 * errors[1] + 1e-4:
        raise ValueError(f"shared {errors[0]:.4g}, alone {errors[1]:.4g} nats a token from float32")
    return {"nats from float32, shared": errors[0], "alone": errors[1]}


def decode(here: Here) -> dict[str, Any]:
    """Our decode loop and transformers' `generate`: the same greedy tokens in float32; tokens a second in bfloat16."""
    import torch

    from rollouts.hf import HFEngine
    from rollouts.protocol import SamplingParams

    found: dict[str, Any] = {}
    draw, length = random.Random(1), 8 if here.dry else 64
    for dtype, count in (("float32", 8), ("bfloat16", 8 if here.dry else 64)):
        policy = model(here, dtype)
        prompts = [[draw.randrange(policy.config.vocab_size) for _ in range(1 + at % 24)] for at in range(count)]
        said = {}
        for way in ("loop", "generate"):
            engine = HFEngine(policy, 0, batch_size=4 * count)
            if way == "generate":
                engine._decodable = False
            params = SamplingParams(temperature=0, max_new_tokens=length)
            said[way] = [reply.token_ids for reply in engine.generate(prompts, params)]
            if way == "loop" and not engine._decodable:
                raise RuntimeError("the decode loop does not take the model")
            params = SamplingParams(n=4, max_new_tokens=length, seed=0)
            taken = seconds(here, lambda engine=engine, params=params, ids=prompts: engine.generate(ids, params), 1)
            found[f"{dtype} {way}, tokens/s"] = 4 * count * length / taken
        same = sum(one == other for one, other in zip(said["loop"], said["generate"], strict=True))
        found[f"{dtype}, equal greedy replies of {count}"] = same
        if dtype == "float32" and same < count - 1:  # two logits may be as good as equal
            raise ValueError(f"{same} of {count} greedy replies are equal")
    torch.manual_seed(0)
    return found


def reward(here: Here) -> dict[str, Any]:
    """Scores with shared prompts and of every reply alone."""
    import torch

    from reward.model import RewardModel
    from reward.shared import group_batches, layout_for, same_prompts

    judge = RewardModel(model(here).model).to(here.device).eval()
    prompts, replies = rows(here, judge.config.vocab_size)
    whole = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    layout = layout_for(judge, 0, None)
    if layout is None:
        raise RuntimeError("its prompts are not shared")
    groups, _ = same_prompts([tuple(prompt) for prompt in prompts], 16)
    shared, alone = torch.zeros(len(whole)), torch.zeros(len(whole))
    with torch.no_grad():
        cuts = [len(prompts[group[0]]) for group in groups]
        for indices, inputs in group_batches(groups, cuts, whole, 16, layout):
            shared[indices] = judge(**{name: one.to(here.device) for name, one in inputs.items()}).cpu()
        for at, ids in enumerate(whole):
            ids_1T = torch.tensor([ids], device=here.device)
            alone[at] = judge(ids_1T, torch.ones_like(ids_1T)).cpu()[0]
    apart = float((shared - alone).abs().max() / alone.std())
    if apart > 0.2:
        raise ValueError(f"scores differ by {apart:.3g} of their deviation")
    return {"scores differ by, of their deviation": apart}


CASES = {f"attention, {dtype}": partial(attention, dtype=dtype) for dtype in ("float32", "bfloat16")}
CASES |= {"policy": policy, "reward model": reward, "decode loop and generate": decode}
