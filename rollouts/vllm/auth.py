"""Who may speak to a vLLM server: whoever has its key, on every route.

vLLM's own `--api-key` guards the paths under /v1, /v2, /inference and /cohere. Open beside them are /invocations (whole
completions), /metrics, /tokenize and, in the development mode that weight updates need, /collective_rpc (any method of
the worker) and others. `RequireKey` therefore stands before all of them, /health and preflight requests (OPTIONS)
included, and lets through what carries `Authorization: Bearer KEY`. It is installed with vLLM's `--middleware`.

What stays open: whoever can read this process's memory or environment (the same user and root) has the key, and over
plain http so has whoever can listen on the network in between.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from hmac import compare_digest
from typing import Any

from align.runtime.address import is_key
from rollouts.errors import RolloutError

KEY_VARIABLE = "ALIGN_VLLM_API_KEY"  # where a server and its clients look unless told another name
_HANDED_OVER: list[str] = []  # from the entry to the middleware, which vLLM makes without arguments
SHORTEST_KEY = 16  # characters

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def add_key_option(parser: argparse.ArgumentParser) -> None:
    """`--api-key-env`, by which a server is told where its key is."""
    parser.add_argument(
        "--api-key-env", default=KEY_VARIABLE, help="environment variable with the key (default: %(default)s)"
    )


def read_key(variable: str) -> str:
    """The key that an environment variable holds.

    Raises:
        RolloutError: it is not set, or holds no usable key.
    """
    key = os.environ.get(variable, "").strip()
    if not is_key(key):
        state = "is not set" if not key else "holds characters that no key has"
        raise RolloutError(f"the environment variable {variable} must hold the key of the server, and {state}")
    if len(key) < SHORTEST_KEY:
        raise RolloutError(
            f"the key in {variable} has {len(key)} characters, at least {SHORTEST_KEY} are needed: "
            "take for instance the output of `openssl rand -hex 32`"
        )
    return key


def take_key(variable: str, words: Sequence[str]) -> None:
    """Hand the key in an environment variable over and take it out of the environment.

    Args:
        words: of the command line that vLLM is to be given.

    Raises:
        RolloutError: no usable key there, or one among the words.
    """
    if any(word.replace("_", "-").startswith("--api-k") for word in words):
        raise RolloutError(
            "--api-key would show the key to every user of this machine: put it into the variable of --api-key-env"
        )
    hand_over(read_key(variable))
    for name in (variable, "VLLM_API_KEY"):  # no child needs the one, vLLM itself would want the other besides
        os.environ.pop(name, None)


def hand_over(key: str) -> None:
    """Leaves `key` for the middleware of this process."""
    _HANDED_OVER[:] = [key]


class RequireKey:
    """ASGI middleware: 401 for every request without the key; websockets are closed before they open.

    Args:
        app: what it guards.
        key: default what `hand_over` left.

    Raises:
        RolloutError: no key was handed over. A server without a key does not start.
    """

    def __init__(self, app: App, key: str | None = None):
        if key is None:
            if not _HANDED_OVER:
                raise RolloutError("the server has no key: start it with `python -m rollouts.vllm.serve`")
            key = _HANDED_OVER[0]
        self.app, self._digest = app, _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._knows_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "no key"})
        else:
            await _refuse(send)

    def _knows_key(self, scope: Scope) -> bool:
        values = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        if len(values) != 1:  # none, or several of which a proxy might have judged another one
            return False
        kind, _, key = values[0].partition(b" ")
        return kind.lower() == b"bearer" and compare_digest(_digest(key), self._digest)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that the comparison says nothing about the key's


async def _refuse(send: Send) -> None:
    body = b'{"error": "this server wants its key on every route: Authorization: Bearer KEY"}'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
