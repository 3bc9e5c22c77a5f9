"""The HTTP client against real sockets: servers that drip where a timeout of each wait would never end."""

import logging
import random
import socket
import threading
import time
from contextlib import contextmanager, suppress
from email.utils import formatdate

import pytest

from align.runtime import http

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def server(talk, family=socket.AF_INET, address=("127.0.0.1", 0)):
    """`talk` gets each connection; what it was sent is in the list that is given with the place."""
    heard: list[bytes] = []

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                heard.append(b"" if talk is deaf else request(connection))
                with suppress(OSError):
                    talk(connection)

    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind(address)
        listening.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname(), heard
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def request(connection):
    """The whole of it; a POST's content is two bytes here."""
    text = b""
    while not text.endswith(b"{}" if text.startswith(b"POST") else b"\r\n\r\n"):
        text += connection.recv(65536)
    return text


def says(content):
    return lambda connection: connection.sendall(content)


def drips(before):
    def talk(connection):
        connection.sendall(before)
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    return talk


def deaf(connection):
    time.sleep(2)


def asked(place, content=b"{}", **changes):
    options = {"headers": {}, "timeout": 5.0, "largest": 1000} | changes
    return http.ask(f"http://127.0.0.1:{place[1]}/a/b?c=d", content, **options)


@pytest.mark.parametrize("before", [b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"])
def test_the_deadline_holds_against_a_server_that_drips(before):
    began = time.monotonic()
    with server(drips(before)) as (place, _), pytest.raises(http.Late, match=r"gave no answer in 0\.3 s") as caught:
        asked(place, timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 2 and caught.value.__context__ is None


def test_the_deadline_holds_while_a_server_does_not_read():
    with server(deaf) as (place, _), pytest.raises(http.Late):
        asked(place, bytes(64 * 2**20), timeout=0.3)


def test_what_is_sent_and_what_comes_back():
    with server(says(ANSWER)) as (place, heard):
        answer = asked(place, headers={"X-Own": "1"})
        assert (answer.status, answer.reason, answer.content, answer.said) == (200, "OK", b"{}", "{}")
        asked(place, None)
    first, second = (text.decode() for text in heard)
    assert first.startswith("POST /a/b?c=d HTTP/1.1\r\n") and first.endswith("\r\n\r\n{}")
    assert f"Host: 127.0.0.1:{place[1]}\r\n" in first and "X-Own: 1" in first and "Content-Length: 2" in first
    assert second.startswith("GET /a/b?c=d") and "Content-Length" not in second


def test_a_unix_socket_is_asked_in_place_of_the_host(tmp_path):
    path = str(tmp_path / "s")
    with server(says(ANSWER), socket.AF_UNIX, path) as (_, heard):
        answer = http.ask("http://localhost/health", headers={}, timeout=5, largest=10, socket=path)
    assert answer.status == 200 and heard[0].startswith(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")


def test_a_redirect_is_not_followed_and_no_proxy_is_asked(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with server(says(ANSWER)) as (other, elsewhere):
        moved = f"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:{other[1]}/\r\nContent-Length: 0\r\n\r\n".encode()
        with server(says(moved)) as (place, _):
            assert asked(place, headers={"Authorization": "Bearer key"}).status == 307
        assert elsewhere == []


def test_an_answer_is_read_up_to_its_bound():
    with server(says(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000))) as (place, _):
        assert len(asked(place, largest=1000).content) == 1001


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Server disconnected"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "in the middle of its answer, 7 bytes before its end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}", "broke off"),
        (b"hello\r\n\r\n", "illegal status line"),
    ],
)
def test_what_is_no_whole_answer_is_broken_off(content, said):
    with server(says(content)) as (place, _), pytest.raises(http.BrokenOff, match=said):
        asked(place)


def test_nobody_there_is_unreachable(tmp_path):
    with pytest.raises(http.Unreachable, match="ConnectionRefusedError"):
        http.ask("http://127.0.0.1:9/", headers={}, timeout=1, largest=1)
    with pytest.raises(http.Unreachable, match="FileNotFoundError"):
        http.ask("http://localhost/", headers={}, timeout=1, largest=1, socket=str(tmp_path / "none"))


def test_the_key_is_in_no_log_of_the_library(caplog):
    key = "sk-0123456789abcdef"
    echo = f"HTTP/1.1 200 {key}\r\nX-Key: {key}\r\nContent-Length: 0\r\n\r\n".encode()
    with server(says(echo)) as (place, heard), caplog.at_level(logging.DEBUG):
        answer = asked(place, headers={"Authorization": f"Bearer {key}"}, secrets=[key])
    assert key.encode() in heard[0] and key not in caplog.text + repr(answer)


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [("7", 7, 7), ("soon", 0, 0), ("-3", 0, 0), ("86400", 120, 120), ("", 0, 0), ("now", 0, 0),
     ("in a minute", 30, 60), ("Mon, 99 Nov 2026", 0, 0)],
)  # fmt: skip
def test_the_pause_that_a_server_asks_for_is_a_number_of_seconds_or_a_date(said, least, most):
    said = {"now": formatdate(usegmt=True), "in a minute": formatdate(time.time() + 60, usegmt=True)}.get(said, said)
    with server(says(f"HTTP/1.1 429 Slow\r\nretry-after: {said}\r\nContent-Length: 0\r\n\r\n".encode())) as (place, _):
        assert least <= asked(place).retry_after <= most


def test_a_pause_that_was_asked_for_is_kept_where_it_is_longer():
    pauses = []

    class Busy(Exception):
        pause = 0.05

    def busy():
        raise Busy

    options = {"attempts": 3, "backoff": 0.001, "longest": 0.2, "chance": random.Random(0)}
    with pytest.raises(Busy):
        http.retried(busy, Busy, tell=lambda failure, number, pause: pauses.append(pause), **options)
    assert pauses == [0.05, 0.05]
