"""Spreading, asking again and giving up, over real HTTP servers that behave badly on demand."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from rollouts.errors import RolloutError
from rollouts.vllm.fleet import Fleet, Server, deal
from rollouts.vllm.http import Address, ServerGone

KEY = "0123456789abcdef-the-key"


class Echo:
    """Answers {"row": ROW, "by": NAME}; `plan` maps the number of a request to what happens instead."""

    def __init__(self, name, plan=None):
        self.name, self.plan, self.rows, self.lock = name, plan or {}, [], threading.Lock()
        self.stale = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.rows.append(body["row"])
                    action = outer.plan.get(len(outer.rows) - 1)
                if action == "break":
                    self.close_connection = True
                    return
                if action == "hang":
                    threading.Event().wait(2)
                status = action if isinstance(action, int) else 200
                answer = {"row": body["row"], "by": outer.name, "stale": action == "stale" or outer.stale}
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = Address(f"http://127.0.0.1:{self.http.server_address[1]}", KEY)


@pytest.fixture
def echo():
    made = []

    def make(name, plan=None):
        made.append(Echo(name, plan))
        return made[-1]

    yield make
    for server in made:
        server.http.shutdown()
        server.http.server_close()


class Watched(Fleet):
    """Notes what it is told; a server that failed is given up after `lives` failures."""

    def __init__(self, echoes, lives=9, timeout=5.0, at_once=2):
        self.events, self.lives = [], lives
        servers = [Server(echo.address, at_once) for echo in echoes]
        super().__init__(
            servers,
            timeout=timeout,
            turn=lambda: len(self.events),
            failed=lambda server, turn: self.events.append("failed"),
            recover=self.bring_back,
            refresh=lambda server: self.events.append("refresh"),
        )

    def bring_back(self, server, turn, reason):
        self.events.append("recover")
        if self.events.count("recover") >= self.lives:
            server.lost = reason

    def ask_rows(self, count):
        return self.ask_all([{"row": row} for row in range(count)], lambda answer: not answer["stale"])


def test_rows_are_dealt_in_turn():
    servers = [Server(Address(f"http://h:{port}", KEY)) for port in (1, 2, 3)]
    assert [rows for _, rows in deal(range(7), servers)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [rows for _, rows in deal([9], servers)] == [[9]]
    assert deal([], servers) == []


def test_answers_come_in_order_and_every_server_works(echo):
    echoes = [echo("a"), echo("b")]
    answers = Watched(echoes).ask_rows(11)
    assert [answer["row"] for answer in answers] == list(range(11))
    assert [answer["by"] for answer in answers] == ["a", "b"] * 5 + ["a"]
    assert sorted(echoes[0].rows) == [0, 2, 4, 6, 8, 10] and sorted(echoes[1].rows) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("action", ["break", 500, 503])
def test_what_is_unanswered_is_asked_again_and_nothing_else(echo, action):
    bad = echo("a", {3: action})
    fleet = Watched([bad], at_once=1)
    answers = fleet.ask_rows(8)
    assert [answer["row"] for answer in answers] == list(range(8))
    assert bad.rows == [0, 1, 2, 3, 3, 4, 5, 6, 7] and fleet.asked == 9
    assert fleet.events == ["failed", "recover"]


def test_a_hanging_server_costs_its_timeout_and_its_share_goes_to_the_other(echo):
    hanging, sound = echo("a", {0: "hang", 1: "hang"}), echo("b")
    fleet = Watched([hanging, sound], lives=1, timeout=0.3)
    answers = fleet.ask_rows(6)
    assert [answer["row"] for answer in answers] == list(range(6)) and {answer["by"] for answer in answers} == {"b"}
    assert fleet.servers[0].lost == "gave no answer to /inference/v1/generate in 0.3 s"
    assert fleet.events == ["failed", "recover"]


def test_when_no_server_is_left_it_says_why(echo):
    bad = echo("a", dict.fromkeys(range(99), 500))
    with pytest.raises(RolloutError, match=r"no vLLM server is left: http://127.0.0.1:\d+ answered .* status 500"):
        Watched([bad], lives=2).ask_rows(3)


def test_a_stale_answer_is_asked_for_once_more(echo):
    stale = echo("a", {1: "stale"})
    fleet = Watched([stale], at_once=1)
    assert [answer["stale"] for answer in fleet.ask_rows(3)] == [False] * 3
    assert stale.rows == [0, 1, 2, 1] and fleet.events == ["refresh"]


def test_a_stale_answer_twice_is_an_error(echo):
    stale = echo("a")
    stale.stale = True
    with pytest.raises(RolloutError, match="answered request 0 twice with other weights"):
        Watched([stale]).ask_rows(3)
    assert len(stale.rows) == 6


@pytest.mark.parametrize(
    ("status", "said"), [(400, "refused"), (401, "does not take the key"), (404, "python -m rollouts.vllm.serve")]
)
def test_what_is_refused_is_not_asked_again(echo, status, said):
    refusing = echo("a", {0: status})
    with pytest.raises(RolloutError, match=said) as caught:
        Watched([refusing], at_once=1).ask_rows(4)
    assert refusing.rows == [0] and KEY not in str(caught.value)


def test_closing_ends_a_call_that_runs(echo):
    slow = echo("a", dict.fromkeys(range(99), "hang"))
    fleet = Watched([slow], at_once=1)
    threading.Timer(0.2, fleet.close).start()
    with pytest.raises(RolloutError, match="closed while it generated"):
        fleet.ask_rows(5)
    assert len(slow.rows) == 1


def test_nobody_there_is_a_gone_server(tmp_path):
    for url in ("http://127.0.0.1:9", f"unix://{tmp_path}/none"):
        with pytest.raises(ServerGone, match="cannot be reached"):
            Address(url, KEY).ask("/health", timeout=1.0)


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://h", "http://", "http://user:secret@h:1", "unix://host/path", "http://h/v1?key=s"),
        *("http://h:port", "http://h:99999"),
    ],
)
def test_what_is_no_address_is_said_without_its_secrets(url):
    with pytest.raises(RolloutError, match="is no address of a vLLM server") as caught:
        Address(url, KEY)
    assert "secret" not in str(caught.value) and "key=s" not in str(caught.value)


def test_the_key_is_in_no_text_and_other_machines_are_told_apart():
    assert KEY not in repr(Address("http://h:1", KEY))
    for url in ("http://node7:1", "http://127.0.0.1.example:1"):
        assert Address(url, KEY).in_the_clear
    for url in ("https://node7", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "unix:///x"):
        assert not Address(url, KEY).in_the_clear


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_what_a_server_echoes_of_the_key_is_not_said(status):
    """In its body (across the place where a quotation ends, too) and in a line that is no HTTP."""
    echoed = "x" * (300 - len(KEY) // 2) + KEY
    line = KEY if status == 200 else f"HTTP/1.1 {status} {KEY}"

    class Handler(StreamRequestHandler):
        def handle(self):
            while self.rfile.readline().strip():
                pass
            self.wfile.write(f"{line}\r\nContent-Length: {len(echoed)}\r\n\r\n{echoed}".encode())

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises((RolloutError, ServerGone)) as caught:
            Address(f"http://127.0.0.1:{server.server_address[1]}", KEY).ask("/health", timeout=5.0)
        server.shutdown()
    told = f"{caught.value} {caught.value.__context__!r} {caught.value.__cause__!r}"
    assert KEY[: len(KEY) // 2] not in told and "None None" in told
