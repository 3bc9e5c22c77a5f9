"""The JSON of a request, within bounds of size and time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

from align.runtime.errors import AlignError

LARGEST_BODY = 16 * 2**20  # bytes of a request
BODY_SECONDS = 30.0  # for the whole of it to arrive


class RequestError(AlignError):
    """A request that cannot be answered as it stands; `status` is HTTP's word for why."""

    def __init__(self, problem: str, status: int = 400):
        super().__init__(problem)
        self.status = status


async def json_body(request: Request) -> Any:
    """The JSON of a request. Raises RequestError: too long, too slow, or no JSON."""
    announced = request.headers.get("content-length", "")
    too_long = RequestError(f"the body is over {LARGEST_BODY} bytes: send several requests", 413)
    if announced.isdecimal() and int(announced) > LARGEST_BODY:
        raise too_long
    received = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                received += chunk
                if len(received) > LARGEST_BODY:
                    raise too_long
    except TimeoutError:
        raise RequestError(f"the body did not arrive in {BODY_SECONDS:g} s", 408) from None
    try:
        body = json.loads(received)
        if b"\\ud" in received.lower():
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError("a text of the body holds half of a surrogate pair, which is no character", 422) from None
    except (ValueError, RecursionError):
        raise RequestError("the body is not JSON") from None
    return body
