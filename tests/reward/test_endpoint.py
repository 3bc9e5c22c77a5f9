"""A real server on loopback, real sockets: answers, hangs, drips, fails and recovers."""

import base64
import json
import logging
import math
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
import torch

from align.runtime.address import url_problem
from data_formats.records import Message
from reward.endpoint import EndpointReward
from reward.failures import judge_all
from reward.protocol import Reward, RewardError, RewardUnavailableError, Sample

KEY = "sk-very-secret"
TOKEN = "to/ken of the query"
LONG = "the server is pinned to one model, and it is another one that is asked for"


class Server(ThreadingHTTPServer):
    """Gives `answers` one after the other, the last one for ever; notes what it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.seen, self.times, self.raw = [], [], [], None
        self.over = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.times.append(time.monotonic())
        server.seen.append((self.path, self.headers, body))
        if server.raw is not None:
            return server.raw(self)
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        if answer == "hang":
            server.over.wait(20)
        elif answer == "drip":
            self.drip()
        elif answer == "drop":
            self.connection.close()
        else:
            self.give(*(answer(body) if callable(answer) else answer))

    def give(self, status, answer, headers=None):
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def drip(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        while not self.server.over.wait(0.05):
            try:
                self.wfile.write(b" ")
            except OSError:
                return

    def log_message(self, *args):
        pass


def lengths(body):
    return 200, {"scores": [len(each["completion"]) for each in body["inputs"]]}


@pytest.fixture
def server():
    server = Server()
    server.answers = [lengths]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def samples(*completions):
    return [Sample((Message("user", "q"),), text, columns={"category": "c", "reference": None}) for text in completions]


def reward(server, **options):
    return EndpointReward(server.url, **({"backoff": 0.01, "timeout": 5.0} | options))


def test_batches_go_out_and_scores_come_back_in_order(server):
    asked = reward(server, batch_size=2, name="remote")
    assert isinstance(asked, Reward)
    assert asked.score(samples("a", "bb", "猫猫猫")) == [1.0, 2.0, 3.0]
    assert [len(body["inputs"]) for _, _, body in server.seen] == [2, 1]
    path, headers, body = server.seen[1]
    assert path == "/score" and headers["Content-Type"] == "application/json"
    assert headers["Authorization"] is None
    assert body["inputs"] == [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": "猫猫猫",
            "columns": {"category": "c", "reference": None},
        }
    ]
    assert asked.score([]) == []


def test_an_endpoint_that_hangs_ends_by_timeout(server):
    server.answers = ["hang"]
    began = time.monotonic()
    with pytest.raises(RewardError, match=rf"'endpoint': {server.url} gave no answer in 0\.2 s \(attempt 2 of 2\)"):
        reward(server, timeout=0.2, attempts=2).score(samples("a"))
    assert 0.4 < time.monotonic() - began < 3


def test_an_answer_that_drips_ends_by_timeout_too(server):
    server.answers = ["drip"]
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"gave no answer in 0\.4 s \(attempt 1 of 1\)"):
        reward(server, timeout=0.4, attempts=1).score(samples("a"))
    assert time.monotonic() - began < 3


def test_what_may_be_over_is_tried_again_with_growing_pauses(server, caplog):
    server.answers = [(500, "oh"), (429, "slow down"), "drop", lengths]
    with caplog.at_level(logging.WARNING):
        assert reward(server, backoff=0.1).score(samples("abc")) == [3.0]
    pauses = [late - early for early, late in zip(server.times, server.times[1:], strict=False)]
    assert [pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=True)] == [True] * 3
    assert [f"(attempt {n} of 6)" in record.getMessage() for n, record in enumerate(caplog.records, 1)] == [True] * 3
    assert "status 429" in caplog.records[1].getMessage()


def test_an_answer_that_breaks_off_is_tried_again(server, caplog):
    short = (200, b'{"scores": [1.0', {"Content-Length": "99"})
    server.answers = [lambda body: short, lengths]
    with caplog.at_level(logging.WARNING):
        assert reward(server).score(samples("abc")) == [3.0]
    assert "broke off in the middle of its answer, 84 bytes before its end" in caplog.records[0].getMessage()


def test_attempts_are_bounded_and_the_error_names_address_status_and_attempt(server):
    server.answers = [(503, "busy")]
    with pytest.raises(RewardError, match=rf"{server.url} answered with status 503 .*busy.*\(attempt 3 of 3\)"):
        reward(server, attempts=3).score(samples("a"))
    assert len(server.seen) == 3


@pytest.mark.parametrize("said", [{"error": {"message": LONG}}, {"message": LONG}, {"detail": LONG}])
def test_an_error_quotes_the_sentence_of_a_server_and_not_its_wrapping(server, said):
    server.answers = [(400, said)]
    with pytest.raises(RewardError, match=f": '{LONG}'$"):
        reward(server).score(samples("a"))


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_other_statuses_are_not_tried_again(server, status):
    server.answers = [(status, "no")]
    with pytest.raises(RewardError, match=rf"status {status} .*not tried again"):
        reward(server).score(samples("a"))
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>hello</html>", r"must answer with .*<html>hello"),
        ([1.0], "must answer with"),
        ({"score": [1.0]}, "must answer with"),
        ({"scores": 1.0}, "must answer with"),
        ({"scores": ["1.0"]}, "must answer with"),
        ({"scores": [True]}, "must answer with"),
        ({"scores": [None]}, "must give one float a reply"),
        ({"scores": [1.0, 2.0]}, "gave 2 scores for 1 replies"),
        ({"scores": []}, "gave 0 scores for 1 replies"),
        ({"scores": [10**400]}, "must give one float a reply"),
        (b"[" * 100_000, "must answer with"),
        ({"scores": [math.nan]}, "gave nan for reply 0"),
        ({"scores": [math.inf]}, "gave inf for reply 0"),
    ],
)
def test_garbage_is_an_error_at_once(server, answer, words):
    server.answers = [(200, answer)]
    with pytest.raises(RewardError, match=words):
        reward(server).score(samples("a"))
    assert len(server.seen) == 1


def test_the_key_is_sent_and_shown_nowhere(server, monkeypatch, caplog):
    monkeypatch.setenv("REWARD_KEY", KEY)
    asked = reward(server, api_key_env="REWARD_KEY", attempts=2)
    server.answers = [(500, f"wrong key {KEY}"), (401, f"wrong key {KEY}")]
    with caplog.at_level(logging.DEBUG), pytest.raises(RewardError, match=r"wrong key \(the key\)") as caught:
        asked.score(samples("a"))
    assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in caplog.text + str(caught.value) + repr(vars(asked))


@pytest.mark.parametrize(("value", "words"), [(None, "is not set"), ("", "is not set"), ("a\nb: c", "characters")])
def test_a_missing_or_impossible_key_is_an_error_before_anything_is_sent(server, monkeypatch, value, words):
    monkeypatch.delenv("REWARD_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("REWARD_KEY", value)
    with pytest.raises(RewardError, match=f"REWARD_KEY must hold the key of .*{words}"):
        reward(server, api_key_env="REWARD_KEY").score(samples("a"))
    assert server.seen == []


def test_nobody_there_is_named(server):
    gone = reward(server, attempts=2)
    server.shutdown()
    server.server_close()
    with pytest.raises(RewardError, match=r"cannot be reached or broke off \(.*refused.*\) \(attempt 2 of 2\)"):
        gone.score(samples("a"))


def test_columns_that_are_no_json_are_an_error(server):
    with pytest.raises(RewardError, match="a column of the prompts cannot be sent as JSON"):
        reward(server).score([Sample((), "a", columns={"x": object()})])


def test_pauses_do_not_touch_the_trainings_generators(server):
    server.answers = [(500, ""), lengths]
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    reward(server).score(samples("a"))
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/score", "plain http to example.org"),
        ("http://10.0.0.1/score", "plain http"),
        ("http://127.0.0.1.example.org/score", "plain http"),
        ("https://user:pass@example.org/score", "user name or password"),
        ("ftp://example.org", "must begin with https"),
        ("example.org/score", "must begin with https"),
        ("https://", "name a host"),
        ("https://example.org:port/", "not a URL"),
    ],
)
def test_addresses_that_are_refused(url, words):
    assert words in url_problem(url)
    with pytest.raises(ValueError, match=r"'endpoint': "):
        EndpointReward(url)


def test_addresses_that_are_taken():
    for url in ("https://example.org/score", "http://localhost:8000", "http://[::1]:8000/x", "http://127.8.0.1/"):
        assert url_problem(url) is None
    assert url_problem("http://example.org", insecure=True) is None


def test_a_query_is_sent_but_not_shown(server):
    server.answers = [(404, "no")]
    with pytest.raises(RewardError) as caught:
        EndpointReward(f"{server.url}?token=hidden").score(samples("a"))
    assert server.seen[0][0] == "/score?token=hidden" and "hidden" not in str(caught.value)


def chain(error):
    """The error with everything that led to it."""
    found = [error]
    for one in found:
        found += [next_one for next_one in (one.__cause__, one.__context__) if next_one and next_one not in found]
    return " ".join(f"{one!r} {one}" for one in found)


def echo(status, body, reason):
    def answer(handler):
        handler.wfile.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode("latin-1")
        )

    return answer


ECHOED = KEY, quote(TOKEN), base64.b64encode(f"user:{KEY}".encode()).decode(), KEY[:10] + "..."


@pytest.mark.parametrize("echoed", ECHOED)
@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, '{"scores": [["{}"]]}', "OK"),
        (400, "{}", "no {}"),
        (500, "x{}x{}", "{}"),
        (200, "{}", "OK"),
        (401, "{}", "{}"),
        (302, "{}", "to {}"),
    ],
)
def test_what_a_server_echoes_is_shown_nowhere(server, status, body, reason, echoed, monkeypatch, caplog):
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    server.raw = echo(status, body.replace("{}", echoed), reason.replace("{}", echoed))
    asked = EndpointReward(f"{server.url}?token={quote(TOKEN)}", api_key_env="KEY_OF_TEST", attempts=2, backoff=0.01)
    with caplog.at_level(logging.WARNING), pytest.raises(RewardError) as caught:
        asked.score(samples("a"))
    told = chain(caught.value) + caplog.text
    assert "token=***" in told and "(the key)" in told
    assert [one for one in (KEY, TOKEN, quote(TOKEN), echoed, KEY[:10]) if one in told] == []


def test_a_line_that_is_no_http_is_not_quoted_with_the_key(server, monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    server.raw = lambda handler: handler.wfile.write(f"{KEY} is no status line\r\n\r\n".encode())
    with pytest.raises(RewardError, match="illegal status line") as caught:
        EndpointReward(server.url, api_key_env="KEY_OF_TEST", attempts=1).score(samples("a"))
    assert KEY not in chain(caught.value)


def test_a_failure_that_no_reply_is_to_blame_for_is_told_apart(server):
    kinds = {400: RewardError, 403: RewardError, 422: RewardError, 500: RewardError, 401: RewardUnavailableError}
    for status, kind in kinds.items():
        server.answers = [(status, "no")]
        with pytest.raises(RewardError) as caught:
            reward(server, attempts=1).score(samples("a"))
        assert type(caught.value) is kind
    server.answers = ["drop"]  # it may have broken over this reply
    with pytest.raises(RewardError) as caught:
        reward(server, attempts=1).score(samples("a"))
    assert type(caught.value) is RewardError
    with pytest.raises(RewardUnavailableError):
        EndpointReward("http://127.0.0.1:9", attempts=1).score(samples("a"))


def test_a_reply_that_an_endpoint_refuses_costs_the_others_nothing(server):
    def refuses(body):
        return (422, "no") if any(each["completion"] == "bad" for each in body["inputs"]) else lengths(body)

    server.answers = [refuses]
    texts = ["a", "bb", "ccc", "bad", "ee", "f", "gg", "hhh"]
    verdict, failures = judge_all(reward(server, batch_size=4), samples(*texts), "mask", most=2)
    assert [None if math.isnan(score) else score for score in verdict.scores] == [1, 2, 3, None, 2, 1, 2, 3]
    assert len(failures) == 1 and "status 422" in failures[0]


def test_a_certificate_nobody_vouches_for_is_refused_at_once(tmp_path):
    import ssl
    import subprocess

    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made = subprocess.run([*words, *files], capture_output=True)
    if made.returncode:
        pytest.skip("openssl is not there to make a certificate")
    server = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *args: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with pytest.raises(RewardError, match="cannot be trusted"):
            EndpointReward(server.url.replace("http://127.0.0.1", "https://localhost"), timeout=5).score(samples("a"))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Root(Handler):
    """Says what `server.gets` has for a path, and scores like any service at whatever path is posted to."""

    def do_GET(self):
        self.server.asked.append(self.path)
        found = self.server.gets.get(self.path)
        self.give(200 if found is not None else 404, found if found is not None else "no")


OUR_HEALTH, VLLM_VERSION = {"server": "align serve-reward"}, {"version": "0.32.0"}


@pytest.mark.parametrize(
    ("gets", "path"),
    [
        ({"/health": OUR_HEALTH}, "/score"),
        ({"/health": b"", "/version": VLLM_VERSION}, "/classify"),
        ({"/health": {"status": "ok"}}, "/"),
        ({"/health": b"", "/version": {"version": 3, "name": "judge"}}, "/"),
        ({}, "/"),
    ],
)
def test_an_address_without_a_path_is_asked_once_what_it_is(server, gets, path):
    server.RequestHandlerClass, server.gets, server.asked = Root, gets, []
    server.answers = [(200, {"data": [{"probs": [0.5]}]}) if path == "/classify" else lengths]
    asked = EndpointReward(server.url.removesuffix("/score"), backoff=0.01)
    expected = [0.5] if path == "/classify" else [1.0]
    assert [asked.score(samples("a")), asked.score(samples("b"))] == [expected] * 2
    assert [place for place, *_ in server.seen] == [path] * 2 and len(server.asked) <= 2


def test_vllms_shape_is_asked_for_by_its_path(server):
    server.answers = [lambda body: (200, {"data": [{"data": [len(body["messages"][-1]["content"])]}]})]
    asked = EndpointReward(server.url.replace("/score", "/pooling"), batch_size=3)
    assert asked.score(samples("a", "abc", "", "ab")) == [1.0, 3.0, 0.0, 2.0]
    assert all(body["use_activation"] is False for *_, body in server.seen)
    server.answers = [(200, {"data": [{"data": [[1.0, 2.0]]}]}), (200, {"scores": [1.0]})]
    for said in ("must give one float", "must answer with"):
        with pytest.raises(RewardError, match=said):
            asked.score(samples("a"))
