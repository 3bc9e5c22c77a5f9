"""The guard around a tiny ASGI application, called as a server would call it."""

import asyncio

import pytest

from rollouts.errors import RolloutError
from rollouts.vllm import auth
from rollouts.vllm.auth import RequireKey, hand_over, read_key

KEY = "0123456789abcdef-the-key"
RIGHT = [(b"authorization", f"Bearer {KEY}".encode())]


def ask(headers, *, kind="http", method="GET", path="/anything"):
    """(what was sent back, whether the application was reached)."""
    sent, reached = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": headers}
    asyncio.run(RequireKey(app, KEY)(scope, None, send))
    return sent, bool(reached)


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "DELETE"])
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/collective_rpc", "/invocations", "//v1", "/"])
def test_every_method_and_path_wants_the_key(method, path):
    sent, reached = ask([], method=method, path=path)
    assert sent[0]["status"] == 401 and not reached
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[1]["body"])).encode()
    sent, reached = ask(RIGHT, method=method, path=path)
    assert sent[0]["status"] == 200 and reached


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        KEY.encode(),
        f"Basic {KEY}".encode(),
        f"Bearer {KEY[:-1]}".encode(),
        f"Bearer {KEY}x".encode(),
        f"Bearer  {KEY}".encode(),
        f"Bearer {KEY.upper()}".encode(),
        b"Bearer \xff\xfe",
    ],
)
def test_anything_but_the_key_is_refused(value):
    sent, reached = ask([(b"authorization", value)])
    assert sent[0]["status"] == 401 and not reached


def test_two_headers_are_refused_and_the_scheme_has_no_case():
    assert ask([*RIGHT, *RIGHT])[0][0]["status"] == 401
    assert ask([(b"Authorization", f"bearer {KEY}".encode())])[1]


def test_websockets_are_closed_before_they_open():
    sent, reached = ask([], kind="websocket")
    assert [message["type"] for message in sent] == ["websocket.close"] and not reached
    assert ask(RIGHT, kind="websocket")[1]


def test_the_key_is_handed_over_once_and_no_server_is_without(monkeypatch):
    monkeypatch.setattr(auth, "_HANDED_OVER", [])
    with pytest.raises(RolloutError, match=r"no key: start it with `python -m rollouts.vllm.serve`"):
        RequireKey(ask)
    hand_over(KEY)
    assert RequireKey(ask)._digest == RequireKey(ask, KEY)._digest


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "is not set"),
        ("  ", "is not set"),
        ("short", "has 5 characters"),
        ("käse" * 8, "holds characters"),
        ("two words and many more", "holds characters"),
    ],
)
def test_a_key_that_is_none_is_named_by_its_variable(monkeypatch, value, said):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(RolloutError, match=f"SOME_KEY.*{said}") as caught:
        read_key("SOME_KEY")
    assert value is None or not value.strip() or value not in str(caught.value)


def test_a_key_is_read_without_its_line_end(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    assert read_key("SOME_KEY") == KEY
