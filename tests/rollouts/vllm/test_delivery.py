"""Weights over HTTP: what is loaded is what was pushed, whatever breaks off, and nothing is ever half of each."""

import hashlib
import json
import socket

import pytest
import torch

from align.runtime import http
from rollouts.vllm import delivery as module
from rollouts.vllm import receive
from rollouts.vllm import weights as push_module
from rollouts.vllm.client import Client, ServerGone
from rollouts.vllm.delivery import Delivery, sees
from rollouts.vllm.receive import ROUTE
from tests.rollouts.vllm.light_server import KEY, LightServer
from tests.rollouts.vllm.models import build, weights

PART = 5000  # bytes; tensors have up to 77000


@pytest.fixture(scope="module")
def running():
    server = LightServer(build())
    yield server
    server.close()


@pytest.fixture
def server(running, monkeypatch):
    """With nothing received."""
    monkeypatch.setattr(module, "PAUSE", 0.05)
    monkeypatch.setattr(push_module, "PIECE", 8000)
    for one in (module, receive):
        monkeypatch.setattr(one, "LARGEST_PART", PART)
    running.receiver.incoming.__init__()
    running.version = "default"
    return running


@pytest.fixture
def sent(monkeypatch):
    """The sizes of the parts that were sent; `fail[n]` is done with the nth in place of sending it."""
    sizes, fail, put = [], {}, Client.put

    def noted(client, path, content, *, timeout):
        sizes.append(len(content))
        return fail.get(len(sizes) - 1, put)(client, path, content, timeout=timeout)

    monkeypatch.setattr(Client, "put", noted)
    noted.sizes, noted.fail, noted.put = sizes, fail, put
    return noted


def pushed(folder, model, version=1, changed=()):
    """A delivery of its weights, those of `changed` moved."""
    made = Delivery("mine", 30.0)
    made.write(((name, tensor + (name in changed)) for name, tensor in weights(model)), folder, version)
    return made


def loaded(server):
    return dict(server.worker.engine.model.named_parameters())


def equal(server, model):
    return all(torch.equal(tensor, loaded(server)[name]) for name, tensor in weights(model))


def test_what_is_loaded_is_what_was_pushed_and_what_did_not_change_stays(server, sent, tmp_path):
    model = build()
    first = pushed(tmp_path, model)
    first.bring(server.client, sees=False)
    assert equal(server, model) and server.version == "mine-1"
    whole = sum(size for _, size in first.pushed.files)
    assert sum(sent.sizes) == whole and max(sent.sizes) == PART and len(first.pushed.files) > 5
    sent.sizes.clear()
    changed = "model.layers.1.mlp.up_proj.weight"
    second = pushed(tmp_path, model, 2, changed)
    second.bring(server.client, sees=False)
    assert server.version == "mine-2" and torch.equal(loaded(server)[changed], dict(weights(model))[changed] + 1)
    assert 24576 < sum(sent.sizes) < 33000  # its 64 × 96 floats, and what a file holds beside them
    kept = [path.stem for path in server.receiver.incoming.folder.iterdir()]
    assert sorted(kept) == sorted(second._sums_of(second.pushed))


def test_a_server_that_sees_the_folder_reads_it_there(server, sent, tmp_path):
    server.worker.sees = True
    try:
        assert sees(server.client, tmp_path) and list(tmp_path.iterdir()) == []
    finally:
        server.worker.sees = False
    assert not sees(server.client, tmp_path)
    (tmp_path / "seen").write_text("another word")
    assert not super(type(server.worker), server.worker).align_sees(str(tmp_path / "seen"), "a word")
    model = build(seed=1)
    pushed(tmp_path, model).bring(server.client, sees=True)
    assert equal(server, model) and not sent.sizes and server.receiver.incoming.folder is None


def test_what_broke_off_goes_on_where_it_was(server, sent, tmp_path, caplog):
    model = build(seed=2)
    made = pushed(tmp_path, model)

    def broken_off(client, path, content, *, timeout):
        with socket.create_connection(server.socket.getsockname()) as raw:
            head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(content)}"
            raw.sendall(f"{head}\r\n\r\n".encode() + content[:1234])
        raise ServerGone("broke off")

    sent.fail[3] = broken_off
    made.bring(server.client, sees=False)
    assert equal(server, model) and "broke off: its weights go on where they were" in caplog.text
    assert sum(sent.sizes) - sent.sizes[3] == sum(size for _, size in made.pushed.files) - 1234


def test_what_came_broken_is_sent_again(server, sent, tmp_path, caplog):
    model = build(seed=3)
    made = pushed(tmp_path, model)

    def flip(client, path, content, *, timeout):
        return sent.put(client, path, bytes([content[0] ^ 1]) + content[1:], timeout=timeout)

    sent.fail[2] = flip
    made.bring(server.client, sees=False)
    assert equal(server, model) and "was not what its checksum says" in caplog.text


def test_a_push_that_ends_in_the_middle_leaves_the_old_weights_under_their_name(server, sent, tmp_path):
    old, new = build(seed=4), build(seed=5)
    pushed(tmp_path, old).bring(server.client, sees=False)
    loads = server.loads

    def gone(*_, **__):
        raise ServerGone("broke off")

    made, count = pushed(tmp_path, new, 2), len(sent.sizes)
    sent.fail.update(dict.fromkeys(range(count + 5, count + 99), gone))
    with pytest.raises(ServerGone, match=r"took nothing more of its weights in 3 attempts, \d+ bytes are missing"):
        made.bring(server.client, sees=False)
    assert equal(server, old) and server.version == "mine-1" and server.loads == loads
    before = sum(sent.sizes[count : count + 5])
    sent.fail.clear()
    start = len(sent.sizes)
    made.bring(server.client, sees=False)
    assert equal(server, new) and server.version == "mine-2"
    assert sum(sent.sizes[start:]) == sum(size for _, size in made.pushed.files) - before


def test_a_rank_without_the_files_leaves_it_to_the_next_push(server, tmp_path):
    made = pushed(tmp_path, build())
    made.pushed = push_module.Push(1, tmp_path / "elsewhere", made.pushed.files, made.pushed.entries)
    with pytest.raises(ServerGone, match="this machine does not have them"):
        made.bring(server.client, sees=False)
    assert server.version == "default"


CONTENT = b"x" * 100
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("PUT", f"{ROUTE}/{NAME}/0", CONTENT, 200),
        ("PUT", f"{ROUTE}/{NAME}/1", CONTENT[1:], 409),
        ("PUT", f"{ROUTE}/{'0' * 64}/0", CONTENT, 409),
        ("PUT", f"{ROUTE}/{NAME}/0", CONTENT + b"x", 413),
        ("PUT", f"{ROUTE}/{NAME}/0", b"y" * 100, 409),
        ("PUT", f"{ROUTE}/../{NAME}/0", CONTENT, 404),
        ("PUT", f"{ROUTE}/{NAME.upper()}/0", CONTENT, 404),
        ("GET", ROUTE, None, 404),
        ("POST", ROUTE, b"no JSON", 400),
        ("POST", ROUTE, json.dumps({"files": {"../x": 1}}).encode(), 400),
        ("POST", ROUTE, json.dumps({"files": {NAME: 0}}).encode(), 400),
        ("POST", ROUTE, json.dumps({"files": {NAME: True}}).encode(), 400),
        ("POST", ROUTE, json.dumps({"files": {NAME: 2**49}}).encode(), 507),
        ("POST", ROUTE, b" " * 3000, 413),
    ],
)
def test_what_the_routes_take_and_refuse(server, monkeypatch, method, path, content, status):
    monkeypatch.setattr(receive, "LARGEST_LIST", 2000)
    assert server.client.ask(ROUTE, {"files": {NAME: 100}}, timeout=5)["missing"] == {NAME: 0}
    whole = {"timeout": 5.0, "largest": 2**20, "method": method}
    assert http.ask(server.url + path, content, headers={"Authorization": "Bearer no"}, **whole).status == 401
    answer = http.ask(server.url + path, content, headers={"Authorization": f"Bearer {KEY}"}, **whole)
    assert answer.status == status, answer.said
    assert server.client.ask(ROUTE, {"files": {NAME: 100}}, timeout=5)["missing"] == (
        {} if status == 200 else {NAME: 0}
    )


def test_a_request_that_says_no_length_is_refused(server):
    server.client.ask(ROUTE, {"files": {NAME: 100}}, timeout=5)
    with socket.create_connection(server.socket.getsockname()) as raw:
        head = f"PUT {ROUTE}/{NAME}/0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 411")
