"""A reward behind an HTTP address: authorisation, bounds, and the way from a request to the scoring thread and back.

starlette and uvicorn do the HTTP. What is asked and answered says `align.serving.shapes`, how requests that arrive
together become one forward `align.serving.batching`. Whoever has no key learns that the server is well, and no more.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from align.runtime.address import BACKLOG
from align.runtime.errors import AlignError
from align.serving.batching import Scorer, status_of
from align.serving.bodies import json_body
from align.serving.shapes import Asked, asked_as_vllm, asked_to_score
from reward.combined import leaves
from reward.endpoint import OURS
from reward.protocol import Reward

ENDING_SECONDS = 30  # for requests that are being answered when the server is told to end


class RewardServer:
    """Answers HTTP requests with the scores of a reward.

    Args:
        reward: what judges.
        name: what it is called in answers.
        key: must come as `Authorization: Bearer KEY`.
        max_batch_tokens: tokens of a forward, padding included, of every model in the reward; a reply that has more
            with its prompt is refused.
    """

    def __init__(self, reward: Reward, name: str, key: str, max_batch_tokens: int):
        self.reward, self.name, self._key = reward, name, key.encode()
        sizes = []
        for leaf in leaves(reward):
            if hasattr(leaf, "batch_tokens"):
                leaf.batch_tokens = max_batch_tokens
                sizes.append(leaf.batch_size)
        self.scorer = Scorer(reward, at_once=max(sizes, default=64))
        self.app = Starlette(
            routes=[
                Route("/health", self.health, methods=["GET"]),
                Route("/score", self._answering(lambda body: asked_to_score(body, reward)), methods=["POST"]),
                Route("/pooling", self._answering(lambda body: self._as_vllm(body, True)), methods=["POST"]),
                Route("/classify", self._answering(lambda body: self._as_vllm(body, False)), methods=["POST"]),
            ],
            lifespan=self._lifespan,
        )
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=ENDING_SECONDS,
            server_header=False,
        )
        self._running = uvicorn.Server(config)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.scorer.close)

    async def health(self, request: Request) -> Response:
        """That the server is well; with the key also what it has done."""
        known = {"status": "ok", "server": OURS}
        if self._allowed(request):
            scorer = self.scorer
            known |= {"reward": self.name, "replies": scorer.replies, "calls": scorer.calls, "failed": scorer.failed}
        return JSONResponse(known)

    def _as_vllm(self, body: Any, pooling: bool) -> Asked:
        return asked_as_vllm(body, self.reward, self.name, pooling)

    def _answering(self, shape: Callable[[Any], Asked]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            if not self._allowed(request):
                return _refused("the key is missing or wrong: send it as Authorization: Bearer KEY", 401)
            try:
                asked = shape(await json_body(request))
                return JSONResponse(asked.answer(*await self.scorer.judge(asked)))
            except ClientDisconnect:
                return Response(status_code=400)
            except AlignError as error:
                return _refused(str(error), status_of(error))
            except Exception as error:
                return _refused(f"{type(error).__name__}: the server's log says more", status_of(error))

        return answer

    def _allowed(self, request: Request) -> bool:
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip().encode("utf-8", errors="replace")
        return kind.lower() == "bearer" and secrets.compare_digest(given, self._key)

    def serve(self, sock: socket.socket) -> None:
        """Answer until `end`, or a signal (SIGTERM, Ctrl-C) where this is the main thread; what is being answered is
        answered first."""
        self._running.run(sockets=[sock])

    def end(self) -> None:
        """Have `serve`, in another thread, come to its end."""
        self._running.should_exit = True


def _refused(said: str, status: int) -> Response:
    """An error as vLLM and OpenAI write it."""
    kind = "BadRequestError" if status < 500 else "InternalServerError"
    return JSONResponse({"error": {"message": said, "type": kind, "code": status}}, status_code=status)
