"""A server on loopback that answers as a chat model would, for tests of what asks one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHOWN = re.compile(r"##### \w{8} begin\n(.*)\n##### \w{8} end\n", re.DOTALL)


class ChatServer(ThreadingHTTPServer):
    """Answers with what `say` makes of the text that is asked about; the first answers have `statuses` instead.

    Attributes:
        bodies: the requests so far.
        retry_after: what answers of another status than 200 say.
    """

    daemon_threads, request_queue_size = True, 64

    def __init__(self, say: Callable[[str], str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say, self.bodies, self.statuses, self.ended = say, [], [], "stop"
        self.retry_after, self.lock = None, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            status = server.statuses.pop(0) if server.statuses else 200
        text = SHOWN.search(body["messages"][0]["content"])[1]
        said = {"choices": [{"message": {"content": server.say(text)}, "finish_reason": server.ended}]}
        said |= {"usage": {"prompt_tokens": 100, "completion_tokens": 7}}
        data = json.dumps(said if status == 200 else {"error": {"message": "not now"}}).encode()
        self.send_response(status)
        if status != 200 and server.retry_after:
            self.send_header("Retry-After", server.retry_after)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def chat_server(say: Callable[[str], str]) -> Iterator[ChatServer]:
    """A server that listens within the block."""
    server = ChatServer(say)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
