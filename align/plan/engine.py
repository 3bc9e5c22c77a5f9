"""What a rollout engine with weights of its own holds: vLLM in this process, or a server that this run starts.

`engine: auto` is planned as HF generate, which samples on the policy itself. vLLM's cache is what the recipe's
`kv_cache_gib` says; without it, on a CPU, vLLM's default of 1 GiB, on a GPU what the replies of one iteration fill
(vLLM takes `memory_share` of the card whether they do or not). Copies of weights that wait for an engine which samples
ahead lie in the host's memory, and are planned where that is the device.
"""

from __future__ import annotations

from align.plan.models import Model
from align.plan.parts import GIB, MemoryPart, parts
from align.plan.shapes import Shape
from align.recipe.rollout_section import RolloutSection

ENGINES = ("vllm", "vllm_server")  # with weights of their own
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def engine_parts(
    rollout: RolloutSection, policy: Model, dtype: str, responses: int, device: str
) -> tuple[MemoryPart, ...]:
    """Its weights and cache on one device; nothing for HF generate and for servers elsewhere.

    Args:
        dtype: of the trainer's weights, which the engine takes by default.
        responses: sampled in an iteration by this process.
    """
    told = rollout.vllm
    if rollout.engine not in ENGINES or told.urls:
        return ()
    width = WIDTHS[dtype if told.dtype == "auto" else told.dtype]
    weights = policy.body.count.whole * width / told.tensor_parallel
    if told.kv_cache_gib is not None:
        cache = told.kv_cache_gib * GIB
    elif device == "cpu":
        cache = GIB
    else:
        rows = min(responses, told.max_num_seqs)
        cache = token_bytes(policy.body.shape, width) * rows * rollout.max_length / told.tensor_parallel
    return parts("engine", weights=weights, kv_cache=cache)


def held_parts(rollout: RolloutSection, policy: Model, dtype: str, overlap: int, device: str) -> tuple[MemoryPart, ...]:
    """Copies that the trainer holds at most, while the engine works batches off with older weights: one each."""
    if overlap < 2 or device != "cpu":
        return ()
    alone = policy.adapter_size and rollout.vllm.adapters != "merge"
    size = 4 * policy.adapter_size if alone else WIDTHS[dtype] * policy.body.count.whole
    return parts("engine", weight_copies=overlap * size)


def token_bytes(shape: Shape, width: int) -> int:
    """Keys and values of a token, in all layers."""
    return 2 * shape.num_hidden_layers * shape.key_size * width


def sleeps(rollout: RolloutSection, device: str) -> bool:
    """Whether it gives its memory back while the trainer updates."""
    return rollout.vllm.sleep and device != "cpu"
