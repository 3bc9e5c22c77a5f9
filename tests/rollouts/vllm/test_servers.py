"""Spreading, asking again and giving up, over real HTTP servers that behave badly on demand."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest
import torch

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm import servers as module
from rollouts.vllm.client import Client, ServerGone
from rollouts.vllm.servers import GENERATE, ServerPlace, Servers

KEY = "0123456789abcdef-the-key"
VERSION = "mine-7"


class Echo:
    """Speaks as a vLLM server does; `plan` maps the number of a request for a reply to what happens instead.

    Its weights are what was pushed to it last, or in turn what `versions` says.
    """

    def __init__(self, name, plan=None, at_once=2):
        self.name, self.plan, self.at_once = name, plan or {}, at_once
        self.rows, self.pulls, self.versions, self.version, self.lock = [], 0, [], VERSION, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == GENERATE:
                    return self.generate(body)
                if self.path == "/update_weight_version":
                    outer.version = body["new_version"]
                outer.pulls += self.path == "/collective_rpc"
                self.give({"success": True, "results": [{"problem": None}]})

            def do_GET(self):
                self.give({"weight_version": outer.versions.pop(0) if outer.versions else outer.version})

            def generate(self, body):
                with outer.lock:
                    outer.rows.append(body["row"])
                    action = outer.plan.get(len(outer.rows) - 1)
                if action == "break":
                    self.close_connection = True
                    return
                if action == "hang":
                    threading.Event().wait(2)
                version = "other" if action == "stale" else outer.version
                choice = {"finish_reason": "stop", "weight_versions": [{"version": version}]}
                answer = {"row": body["row"], "by": outer.name, "choices": [choice]}
                self.give(answer, action if isinstance(action, int) else 200)

            def give(self, answer, status=200):
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.client = Client(f"http://127.0.0.1:{self.http.server_address[1]}", KEY)


@pytest.fixture
def echo():
    made = []

    def make(*args, **kwargs):
        made.append(Echo(*args, **kwargs))
        return made[-1]

    yield make
    for server in made:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def of(tmp_path, monkeypatch):
    """Servers with pushed weights of version 7."""
    monkeypatch.setattr(module, "PAUSE", 0.0)

    def make(*echoes, timeout=5.0):
        settings = VLLMSettings(max_model_len=8, request_timeout=timeout)
        servers = Servers([ServerPlace(echo.client, echo.at_once) for echo in echoes], settings, "mine")
        push(servers, tmp_path, 7)
        return servers

    return make


def push(servers, folder, version):
    servers.write([("a", torch.zeros(2))], folder, version)
    servers.push()


def ask(servers, count):
    return servers.ask_all([{"row": row} for row in range(count)])


def test_answers_come_in_order_and_every_server_works(echo, of):
    echoes = [echo("a"), echo("b")]
    answers = ask(of(*echoes), 41)
    assert [answer["row"] for answer in answers] == list(range(41))
    assert sorted(echoes[0].rows + echoes[1].rows) == list(range(41)) and echoes[0].rows and echoes[1].rows


def test_few_rows_are_spread_evenly(echo, of):
    echoes = [echo("a", {0: "hang", 1: "hang"}, at_once=9), echo("b", {0: "hang", 1: "hang"}, at_once=9)]
    ask(of(*echoes), 4)
    assert len(echoes[0].rows) == len(echoes[1].rows) == 2


@pytest.mark.parametrize("action", ["break", 500, 503])
def test_what_is_unanswered_is_asked_again_and_nothing_else(echo, of, action):
    bad = echo("a", {3: action}, at_once=1)
    servers = of(bad)
    assert [answer["row"] for answer in ask(servers, 8)] == list(range(8))
    assert bad.rows == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert (servers.servers[0].failures, servers.servers[0].lost) == (1, None)


def test_a_hanging_server_costs_its_timeout_and_its_share_goes_to_the_other(echo, of):
    hanging, sound = echo("a", dict.fromkeys(range(9), "hang")), echo("b")
    servers = of(hanging, sound, timeout=0.3)
    answers = ask(servers, 6)
    assert [answer["row"] for answer in answers] == list(range(6)) and {answer["by"] for answer in answers} == {"b"}
    ask(servers, 6)
    assert servers.servers[0].lost == "gave no answer to /inference/v1/generate in 0.3 s"
    assert len(hanging.rows) <= 4 and ask(servers, 6) and len(hanging.rows) <= 4


def test_when_no_server_is_left_it_says_why_and_the_next_push_tries_it_again(echo, of, tmp_path):
    bad = echo("a", dict.fromkeys(range(4), 500))
    servers = of(bad)
    with pytest.raises(RolloutError, match=r"no vLLM server is left: http://127.0.0.1:\d+ answered .* status 500"):
        ask(servers, 3)
    push(servers, tmp_path, 8)
    assert len(ask(servers, 3)) == 3


def test_a_stale_answer_is_asked_for_once_more(echo, of):
    stale = echo("a", {1: "stale"}, at_once=1)
    assert [answer["row"] for answer in ask(of(stale), 3)] == [0, 1, 2]
    assert stale.rows == [0, 1, 2, 1] and stale.pulls == 1  # it had the weights


def test_a_server_with_other_weights_gets_the_pushed_ones(echo, of):
    servers = of(echo_of := echo("a"))
    echo_of.version = "default"  # somebody started it again
    assert len(ask(servers, 3)) == 3 and echo_of.pulls == 2 and echo_of.version == VERSION


@pytest.mark.parametrize(
    ("versions", "pulls"),
    [
        (["mine-7"], 0),  # another rank has brought them
        (["mine-changing", "mine-changing", "mine-7"], 0),  # another rank is at it
        (["mine-6"], 1),
        (["mine-changing", "default"], 1),  # the server died meanwhile
    ],
)
def test_weights_that_another_rank_brings_are_waited_for(echo, of, versions, pulls):
    one = echo("a", {0: "stale"})
    servers = of(one)
    one.versions, one.pulls = versions, 0
    ask(servers, 1)
    assert one.pulls == pulls and not one.versions


def test_a_stale_answer_twice_is_an_error(echo, of):
    stale = echo("a", dict.fromkeys(range(99), "stale"))
    with pytest.raises(RolloutError, match="answered request 0 twice with other weights"):
        ask(of(stale), 3)
    assert len(stale.rows) == 6


@pytest.mark.parametrize(
    ("status", "said"), [(400, "refused"), (401, "does not take the key"), (404, "python -m rollouts.vllm.serve")]
)
def test_what_is_refused_is_not_asked_again(echo, of, status, said):
    refusing = echo("a", {0: status}, at_once=1)
    with pytest.raises(RolloutError, match=said) as caught:
        ask(of(refusing), 4)
    assert refusing.rows == [0] and KEY not in str(caught.value)


def test_closing_ends_a_call_that_runs(echo, of):
    slow = echo("a", dict.fromkeys(range(99), "hang"), at_once=1)
    servers = of(slow)
    threading.Timer(0.2, servers.close).start()
    with pytest.raises(RolloutError, match="closed while it generated"):
        ask(servers, 5)
    assert len(slow.rows) == 1


def test_nobody_there_is_a_gone_server(tmp_path):
    for url in ("http://127.0.0.1:9", f"unix://{tmp_path}/none"):
        with pytest.raises(ServerGone, match="cannot be reached"):
            Client(url, KEY).ask("/health", timeout=1.0)


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://h", "http://", "http://user:secret@h:1", "unix://host/path", "http://h/v1?key=s"),
        *("http://h:port", "http://h:99999"),
    ],
)
def test_what_is_no_address_is_said_without_its_secrets(url):
    with pytest.raises(RolloutError, match="is no address of a vLLM server") as caught:
        Client(url, KEY)
    assert "secret" not in str(caught.value) and "key=s" not in str(caught.value)


def test_the_key_is_in_no_text_and_other_machines_are_told_apart():
    assert KEY not in repr(Client("http://h:1", KEY))
    for url in ("http://node7:1", "http://127.0.0.1.example:1"):
        assert Client(url, KEY).in_the_clear
    for url in ("https://node7", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "unix:///x"):
        assert not Client(url, KEY).in_the_clear


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
            Client(f"http://127.0.0.1:{server.server_address[1]}", KEY).ask("/health", timeout=5.0)
        server.shutdown()
    told = f"{caught.value} {caught.value.__context__!r} {caught.value.__cause__!r}"
    assert KEY[: len(KEY) // 2] not in told and "None None" in told
