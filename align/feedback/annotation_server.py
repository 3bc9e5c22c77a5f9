"""The page on which people judge, and what it asks, behind a loopback address.

Whoever opens the address with the token in it gets a cookie in its place, which no script can read; nothing is answered
without one of the two. Names of other hosts (DNS rebinding) and other origins are refused. The page asks nothing of any
other place, and its policy lets nothing run but its own script. A judgment is on the disk before the answer says so.

    GET  /?token=TOKEN              the cookie, and on to the page
    GET  /, /page.js, /page.css     the page
    GET  /guideline                 {"text"}
    GET  /state?annotator=NAME      how far the annotator is, and the next item (`Annotation.state`)
    POST /judgments                 a judgment, or an undo, as `judgments` has them without `time` -> the state after
                                    it; after an undo with its item, and as `former` what was taken back
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from align.feedback.annotation import Annotation
from align.feedback.judgments import Undo
from align.runtime.address import BACKLOG, is_loopback
from align.runtime.errors import AlignError, StorageError
from align.serving.bodies import RequestError, json_body

PAGE = Path(__file__).parent / "page"
ENDING_SECONDS = 5  # for requests that are being answered when the server is told to end
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Answer = Callable[[Request], Awaitable[Response]]


class AnnotationServer:
    """Shows an annotation's items to people and keeps what they say.

    Args:
        token: must be in the address that is opened first.
        guideline: the project's own, shown above the items.
    """

    def __init__(self, annotation: Annotation, token: str, guideline: str = ""):
        self.annotation, self._token, self._guideline = annotation, token, guideline
        self._cookie = f"align-annotate-{hashlib.sha256(token.encode()).hexdigest()[:8]}"  # one a server: ports share
        self.app = Starlette(
            routes=[
                Route("/", self._guarded(self._page), methods=["GET"]),
                Route("/page.js", self._guarded(_file("page.js", "text/javascript")), methods=["GET"]),
                Route("/page.css", self._guarded(_file("page.css", "text/css")), methods=["GET"]),
                Route("/guideline", self._guarded(self._tell_guideline), methods=["GET"]),
                Route("/state", self._guarded(self._state), methods=["GET"]),
                Route("/judgments", self._guarded(self._keep), methods=["POST"]),
            ]
        )
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=ENDING_SECONDS,
            server_header=False,
        )
        self._running = uvicorn.Server(config)

    def serve(self, sock: socket.socket) -> None:
        """Answer until `end`, or a signal (SIGTERM, Ctrl-C) where this is the main thread."""
        self._running.run(sockets=[sock])

    def end(self) -> None:
        """Have `serve`, in another thread, come to its end."""
        self._running.should_exit = True

    def _guarded(self, answer: Answer) -> Answer:
        async def guarded(request: Request) -> Response:
            try:
                self._require_allowed(request)
                response = await answer(request)
            except ClientDisconnect:
                response = Response(status_code=400)
            except RequestError as error:
                response = _json({"error": str(error)}, error.status)
            except StorageError as error:
                response = _json({"error": str(error)}, 507)
            except AlignError as error:
                response = _json({"error": str(error)}, 422)
            response.headers.update(HEADERS)
            return response

        return guarded

    def _require_allowed(self, request: Request) -> None:
        """Raises RequestError where it does not come from the page, or from whoever opens it."""
        host = request.headers.get("host", "")
        if not _is_ours(host):
            raise RequestError("this is asked of another host: open the address that the program printed", 421)
        if request.headers.get("origin", f"http://{host}") != f"http://{host}":
            raise RequestError("another page asks this", 403)
        if request.url.path != "/" and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise RequestError("another page asks this", 403)
        given = [request.cookies.get(self._cookie, "")]
        if request.url.path == "/":
            given.append(request.query_params.get("token", ""))
        if not any(secrets.compare_digest(one.encode("utf-8", "replace"), self._token.encode()) for one in given):
            told = "the token is missing or not that of this server: open the address that the program printed last"
            raise RequestError(told, 403)

    async def _page(self, request: Request) -> Response:
        if "token" not in request.query_params:
            return await _file("page.html", "text/html")(request)
        onwards = RedirectResponse("/", 303)
        onwards.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
        return onwards

    async def _tell_guideline(self, request: Request) -> Response:
        return _json({"text": self._guideline})

    async def _state(self, request: Request) -> Response:
        name = self.annotation.join(request.query_params.get("annotator", ""))
        return _json(self.annotation.state(name))

    async def _keep(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise RequestError("the body must be sent as application/json", 415)
        said = self.annotation.keep(await json_body(request))  # blocks: one writer, and a row after the other
        if isinstance(said, Undo):
            former = self.annotation.undone(said)
            return _json(self.annotation.state(said.annotator, former.item) | {"former": former.as_row()})
        return _json(self.annotation.state(said.annotator))


def _is_ours(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _file(name: str, kind: str) -> Answer:
    async def answer(request: Request) -> Response:
        return Response((PAGE / name).read_bytes(), media_type=kind)

    return answer


def _json(value: Any, status: int = 200) -> Response:
    """In ASCII, since an item may hold half of a surrogate pair."""
    return Response(json.dumps(value), status, media_type="application/json")
