"""align serve-reward REWARD: any reward behind an HTTP address.

REWARD is what `align score` takes. Requests that arrive together are scored together. It listens on loopback and wants
a key, `Authorization: Bearer KEY`: one made at random, printed once, or the one in the environment variable that --key
names. A part `kind: http` of a recipe's reward speaks to it; `docs/rewards.md` says what is asked and answered.
"""

from __future__ import annotations

import argparse
import os
import secrets
from typing import Any

from align.commands.options import add_dtype, port, positive
from align.runs.interrupt import until_told
from align.runtime.address import http_url, is_key, is_loopback, listen
from align.runtime.errors import AlignError
from align.runtime.terminal import say

KEY = "ALIGN_REWARD_KEY"  # what the printed line calls the variable of a random key
SHORTEST_KEY = 8


class KeyRefusedError(AlignError, ValueError):
    """A key that guards nothing."""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    parser = commands.add_parser("serve-reward", help="serve any reward over HTTP", description=__doc__)
    parser.set_defaults(work=serve_reward_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("reward", metavar="REWARD", help="a model, a run, file.py:name, RECIPE or RECIPE:ppo.reward")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default %(default)s, this machine alone)")
    parser.add_argument("--port", type=port, default=8300, help="default %(default)s; 0: one that is free")
    parser.add_argument("--key", metavar="VARIABLE", help="environment variable with the key (default: a random key)")
    words = "tokens of a forward, padding included; a longer reply is refused (default %(default)s)"
    parser.add_argument("--max-batch-tokens", type=positive, default=16384, metavar="N", help=words)
    words = "replies of a forward at most (default %(default)s; a recipe says its own)"
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help=words)
    add_dtype(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def serve_reward_command(args: argparse.Namespace) -> None:
    """Load the reward, say where it is, and answer until a signal comes.

    Raises:
        MissingFileError, ModelFileError, RecipeError, RewardError: no such reward.
        KeyRefusedError: a key that is too short, or that no header can hold.
        AddressInUseError: nothing can listen there.
    """
    key = secrets.token_urlsafe(24) if args.key is None else os.environ.get(args.key, "").strip()
    if len(key) < SHORTEST_KEY or not is_key(key):
        raise KeyRefusedError(
            f"the environment variable {args.key} must hold a key of at least {SHORTEST_KEY} printable ASCII "
            "characters without a space"
        )

    from align.evaluation.scoring import best_device
    from align.runtime.memory import memory_errors
    from align.serving.named import named_reward
    from align.serving.reward_server import RewardServer

    listening = listen(args.host, args.port)  # before a large model is loaded for nothing
    with memory_errors("the reward", f"--max-batch-tokens ({args.max_batch_tokens})"):
        named = named_reward(args.reward, batch_size=args.batch_size, device=best_device(), dtype=args.dtype)
    server = RewardServer(named.reward, args.reward, key, args.max_batch_tokens)
    url = http_url(args.host, listening.getsockname()[1])
    say(f"serving {args.reward} at {url} (/score, /pooling, /classify, /health); Ctrl-C ends it")
    if args.key is None:
        say(f"its key, until it ends: export {KEY}={key}")
    say(f'in a recipe: reward: {{kind: http, url: "{url}", api_key_env: {args.key or KEY}}}', flush=True)
    if not is_loopback(args.host):
        say("whoever can reach this address sees what is sent: plain http shows prompts, replies and key", flush=True)
    with until_told():
        server.serve(listening)
    say("ended")
