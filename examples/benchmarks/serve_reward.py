"""A served reward model under load: replies a second of `align serve-reward` beside bare passes of the same batches.

    python examples/benchmarks/serve_reward.py [--cases 128 256] [--rounds 5] [--out FOLDER]

served: 200 clients on loopback, each with a connection of its own, send one reply, wait for its score and send the
next; an answer that does not come, or is none, ends the program. What its CPU seconds count is the server; the clients
are a process of their own on the same cores, whose time is told as `clients_cpu`. plain: the model's forward alone on
the very batches that a served run made. Float32; a Qwen2 of random weights. `latency_50` and `latency_95` are of a
request, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time

import measuring
import small_models
from measuring import Case, Turns

KEY = "key-of-the-benchmark"
SIZES = {"vocab": 1024, "width": 256, "layers": 6, "clients": 200, "each": 2, "sides": ["served", "plain"]}
CASES: dict[str, Case] = {
    str(length): SIZES | {"length": length, "words": f"200 clients, replies of {length} tokens with their prompts"}
    for length in (128, 256)
}
TINY = {"vocab": 64, "width": 32, "layers": 1, "length": 32, "clients": 8}


def replies(case: Case) -> list[dict[str, str]]:
    """What the clients send: `length` tokens, give or take a quarter, half of them the prompt's."""
    rng, half = random.Random(0), case["length"] / 2

    def words() -> str:
        return small_models.words_of(max(1, round(half * rng.uniform(0.75, 1.25)) - 4), case["vocab"], rng)

    return [{"prompt": words(), "completion": words()} for _ in range(case["clients"] * case["each"])]


class Loaded:
    """A server in this process with its clients in another."""

    def __init__(self, case: Case):
        from align.runtime.address import listen
        from align.serving.reward_server import RewardServer
        from reward.model import RewardModel
        from reward.sources import ModelReward

        self.model = RewardModel(small_models.make("Qwen2Model", case)).requires_grad_(False).eval()
        names = small_models.tokenizer(case["vocab"])
        self.server = RewardServer(ModelReward(self.model, names), "model", KEY, 16384)
        listening = listen("127.0.0.1", 0)
        threading.Thread(target=self.server.serve, args=(listening,), daemon=True).start()
        told = json.dumps({"port": listening.getsockname()[1], "clients": case["clients"], "replies": replies(case)})
        command = [sys.executable, __file__, "--clients"]
        self.clients = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.clients.stdin.write(f"{told}\n")

    def run(self) -> dict[str, float]:
        """Every reply scored once; what the clients say of it."""
        self.clients.stdin.write("go\n")
        self.clients.stdin.flush()
        said = self.clients.stdout.readline()
        if not said:
            raise SystemExit("the clients gave up: an answer is missing")
        return json.loads(said)

    def close(self) -> None:
        """End both."""
        self.clients.kill()
        self.clients.communicate()
        self.server.end()


def served(case: Case, turns: Turns) -> None:
    """By `align serve-reward`'s server."""
    loaded = Loaded(case)
    try:
        while True:
            turns.begin()
            said = loaded.run()
            turns.end(said.pop("answers"), **said)
    finally:
        loaded.close()


def plain(case: Case, turns: Turns) -> None:
    """The forward alone, on the batches of one served run."""
    import torch

    loaded, batches = Loaded(case), []
    hook = loaded.model.register_forward_pre_hook(lambda _, args, given: batches.append(given), with_kwargs=True)
    loaded.run()
    hook.remove()
    loaded.close()
    count = case["clients"] * case["each"]

    @torch.no_grad()
    def passes() -> int:
        for batch in batches:
            loaded.model(**batch).tolist()
        return count

    turns.repeat(passes)


def clients() -> None:
    """The process of the clients: at every word from the parent, all replies once."""
    told = json.loads(sys.stdin.readline())
    bodies = [json.dumps(reply).encode() for reply in told["replies"]]
    for _ in sys.stdin:
        cpu = time.process_time()
        seconds = sorted(asyncio.run(_loops(told["port"], bodies, told["clients"])))
        figures = {"answers": len(seconds), "clients_cpu": time.process_time() - cpu}
        figures |= {f"latency_{share}": seconds[len(seconds) * share // 100] for share in (50, 95)}
        print(json.dumps(figures), flush=True)


async def _loops(port: int, bodies: list[bytes], count: int) -> list[float]:
    """The seconds of every request; raises where an answer is missing or is no score."""
    found = await asyncio.gather(*(_loop(port, bodies[at::count]) for at in range(count)))
    return [seconds for one in found for seconds in one]


async def _loop(port: int, bodies: list[bytes]) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    for body in bodies:
        began = time.perf_counter()
        head = f"POST /score HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length"))
        (score,) = json.loads(await reader.readexactly(length))["scores"]
        assert status.split()[1] == "200" and isinstance(score, float)
        seconds.append(time.perf_counter() - began)
    writer.close()
    return seconds


SIDES = {"served": served, "plain": plain}


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    measuring.program(__file__, __doc__, SIDES, CASES, unit="replies", tiny=TINY, argv=argv)


if __name__ == "__main__":
    if sys.argv[1:] == ["--clients"]:
        clients()
    else:
        main(sys.argv[1:])
