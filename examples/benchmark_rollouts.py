"""Tokens a second of HF generate and of vLLM by batch size, of vLLM behind our engine and bare, and seconds a sync.

    python examples/benchmark_rollouts.py [--batch-sizes 2 8 32 128] [--rounds 5] [--model FOLDER] [--dtype float32]

Both engines answer the same prompts with replies of a fixed length, two to a prompt, at temperature 1 and top-p 0.9. In
every round each engine and bare `LLM.generate` (the very requests that our engine makes, on the very engine inside it)
run once, in turn; speeds are medians over the rounds, ratios are of the same round. A sync is a whole `update_weights`:
all tensors, the prefix cache's reset, and nothing else. Without --model a Qwen2 of random weights is made.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "vocab_size": 2048}
REPLIES = 2


def make_model(path: str | None, dtype: str) -> Any:
    """The model of the folder, or a Qwen2 of `SHAPE`."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if path is not None:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device).eval()
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, **heads)).to(device, getattr(torch, dtype)).eval()


def make_prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Random ids, `length` of them, give or take a half."""
    rng = random.Random(0)
    return [
        [rng.randrange(vocabulary) for _ in range(max(1, round(length * rng.uniform(0.5, 1.5))))] for _ in range(count)
    ]


def medians(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Tokens a second of each way, and the ratio of `vllm` over each other way, by round."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            tokens = run()
            if turn:  # the first round warms up
                speeds[name].append(tokens / (time.perf_counter() - began))
    table = {name: statistics.median(found) for name, found in speeds.items()}
    for name in ways:
        if name != "vllm" and "vllm" in ways:
            ratios = [own / other for own, other in zip(speeds["vllm"], speeds[name], strict=True)]
            table[f"vllm/{name}"] = statistics.median(ratios)
    return table


def by_batch_size(model: Any, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The table of speeds, a line for each batch size (replies at once), and that of syncs."""
    from rollouts.hf import HFEngine
    from rollouts.protocol import SamplingParams
    from rollouts.settings import VLLMSettings
    from rollouts.vllm.engine import VLLMEngine
    from rollouts.vllm.requests import request_params
    from rollouts.weights import checkpoint_tensors

    room = 2 * options.prompt_length + options.new_tokens
    engine = VLLMEngine(model, VLLMSettings(max_model_len=room, dtype=options.dtype, kv_cache_gib=options.kv_cache_gib))
    engine.update_weights(checkpoint_tensors(model), 0)
    params = SamplingParams(n=REPLIES, top_p=0.9, max_new_tokens=options.new_tokens, seed=1)
    table = {}
    for batch_size in options.batch_sizes:
        prompts = make_prompts(max(1, batch_size // REPLIES), options.prompt_length, model.config.vocab_size)
        hf = HFEngine(model, 0, batch_size)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        requests = request_params(params, len(prompts), model.config.vocab_size, mask=False)

        def count(completions: list[Any]) -> int:
            return sum(len(completion.token_ids) for completion in completions)

        def bare(inputs: Any = inputs, requests: Any = requests) -> int:
            outputs = engine._local._open().generate(inputs, requests, use_tqdm=False)
            return sum(len(reply.token_ids) for output in outputs for reply in output.outputs)

        ways: dict[str, Callable[[], int]] = {
            "vllm": lambda prompts=prompts: count(engine.generate(prompts, params)),
            "bare": bare,
            "hf": lambda prompts=prompts, hf=hf: count(hf.generate(prompts, params)),
        }
        table[f"batch {batch_size}"] = medians(ways, options.rounds)
        show(f"batch {batch_size}", table[f"batch {batch_size}"])
    seconds = []
    for version in range(1, options.rounds + 2):
        began = time.perf_counter()
        engine.update_weights(checkpoint_tensors(model), version)
        seconds.append(time.perf_counter() - began)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    table["sync"] = {"seconds": statistics.median(seconds[1:]), "million parameters": size}
    show("sync", table["sync"])
    engine.close()
    return table


def show(name: str, figures: dict[str, float]) -> None:
    """One line."""
    print(f"{name}:", ", ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """`by_batch_size` as the options say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 8, 32, 128], help="replies at once")
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="a folder; default: random weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kv-cache-gib", type=float, default=None)
    parser.add_argument("--json", action="store_true", help="print the whole table as JSON at the end")
    options = parser.parse_args(argv)
    table = by_batch_size(make_model(options.model, options.dtype), options)
    if options.json:
        print(json.dumps(table))
    return table


if __name__ == "__main__":
    main()
