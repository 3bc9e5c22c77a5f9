"""Weights to a server that does not see the trainer's folder: how many bytes, how long, and how much memory.

    python examples/benchmark_push.py [--hidden 1024] [--layers 12] [--vocabulary 32000] [--lora 16]

A random Qwen2 policy is pushed three times over HTTP on this machine's loopback to the receiving half of a vLLM server
(`rollouts.vllm.receive`, in a process of its own; loading them is vLLM's and is not here): at first, after all weights
have changed, and after one tensor has. With `--lora RANK` in float32 thin matrices instead, on all linear layers.
Memory is the growth of the resident set over that before the push, of the files' pages apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from align.runtime.address import listen
from rollouts.vllm.auth import RequireKey
from rollouts.vllm.client import Client
from rollouts.vllm.delivery import Delivery
from rollouts.vllm.low_rank import changes
from rollouts.vllm.receive import ReceiveWeights
from rollouts.weights import adapter_tensors, checkpoint_names, checkpoint_tensors

MIB = 2**20


def receiver(sock: object, key: str) -> None:
    """The server's half, until it is ended."""
    import uvicorn

    async def nothing(scope, receive, send) -> None:
        raise ValueError(f"nobody asks {scope['path']}")

    config = uvicorn.Config(RequireKey(ReceiveWeights(nothing), key), log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[sock])


class Peak:
    """The largest private memory of a process while it is looked at, over that before."""

    def __init__(self, pid: int):
        self._process, self._over = psutil.Process(pid), threading.Event()
        self.before = self.most = self._now()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _now(self) -> int:
        found = self._process.memory_info()
        return found.rss - found.shared

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, self._now())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def grown(self) -> float:
        """MiB."""
        return (self.most - self.before) / MIB


def policy(args: argparse.Namespace) -> torch.nn.Module:
    shape = {"hidden_size": args.hidden, "intermediate_size": 4 * args.hidden, "num_hidden_layers": args.layers}
    heads = {"num_attention_heads": args.hidden // 64, "num_key_value_heads": args.hidden // 64}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=args.vocabulary, **shape, **heads)).to(torch.bfloat16)
    if args.lora == 0:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=args.lora, target_modules="all-linear", task_type="CAUSAL_LM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 1024), ("layers", 12), ("vocabulary", 32000), ("lora", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model, key, sock = policy(args), secrets.token_hex(16), listen("127.0.0.1", 0)
    other = multiprocessing.get_context("spawn").Process(target=receiver, args=(sock, key), daemon=True)
    other.start()
    client = Client(f"http://127.0.0.1:{sock.getsockname()[1]}", key)
    client.ask("/align/weights", {"files": {}}, timeout=60)  # it is up
    delivery = Delivery("benchmark", 60.0)
    print("| push | MiB | MiB over HTTP | write, s | over HTTP, s | trainer's memory, MiB | server's, MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for version, what in enumerate(("first", "all changed", "one tensor changed")):
            row(what, version, model, delivery, client, Path(folder), other.pid, lora=args.lora > 0)
    other.terminate()


@torch.no_grad()
def row(
    what: str,
    version: int,
    model: torch.nn.Module,
    delivery: Delivery,
    client: Client,
    folder: Path,
    server: int,
    *,
    lora: bool,
) -> None:
    """Changes the policy, pushes it, and prints a line of the table."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in {"first": [], "all changed": trained}.get(what, trained[-2:-1]):
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    sent = 0
    put = Client.put

    def counted(self: Client, path: str, content: bytes, *, timeout: float) -> bool:
        nonlocal sent
        sent += len(content)
        return put(self, path, content, timeout=timeout)

    Client.put = counted
    with Peak(psutil.Process().pid) as ours, Peak(server) as theirs:
        began = time.perf_counter()
        if not lora or version == 0:
            delivery.write(checkpoint_tensors(model, merge=False), folder, version)
        if lora:
            config, named = adapter_tensors(model)
            delivery.write_adapter(changes(config, named, checkpoint_names(model, merge=False)), folder, version)
        written = time.perf_counter()
        delivery._upload(client, delivery.pushed)
        done = time.perf_counter()
    Client.put = put
    whole = sum(size for _, size in delivery.pushed.files)
    figures = f"{whole / MIB:.0f} | {sent / MIB:.1f} | {written - began:.1f} | {done - written:.1f}"
    print(f"| {what} | {figures} | {ours.grown:.0f} | {theirs.grown:.0f} |", flush=True)


if __name__ == "__main__":
    main()
