"""The server engine on a real server: what transformers computes, weights by file, a guarded door, several servers."""

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from align.runtime import http
from rollouts.errors import RolloutError
from rollouts.protocol import Engine, SamplingParams, Scoring
from rollouts.vllm import delivery
from rollouts.vllm.client import Client
from rollouts.vllm.receive import ROUTE
from rollouts.vllm.server_engine import VLLMServerEngine
from rollouts.vllm.servers import GENERATE
from rollouts.vllm.weights import write_push
from rollouts.weights import checkpoint_tensors
from tests.rollouts.vllm.models import VOCABULARY, build, settings

pytestmark = [pytest.mark.needs("vllm"), pytest.mark.slow]

PROMPTS = [[5, 6, 7, 8, 9], [3], [11, 12, 13], [20 + i % 7 for i in range(150)]]  # the last one spans cache blocks


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def engine(model):
    engine = VLLMServerEngine(model, settings())
    yield engine
    engine.close()


@pytest.fixture
def pushed(engine, model):
    """The engine with `model`'s weights, whatever the test before left."""
    engine.update_weights(checkpoint_tensors(model), engine.weight_version + 1)
    return engine


@pytest.fixture(scope="module")
def second(engine):
    """Another server with the same key: the process that owns it, those of the server, its address, folders and log."""
    command = [sys.executable, "-m", "tests.rollouts.vllm.programs", "owner"]
    environment = os.environ | {"SOME_KEY": own_client(engine).key}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        try:
            said = owner.stdout.readline().split()
            assert said, "the owner did not start its server"
            home, weights, log = map(Path, said[1:])
            yield owner, family(int(said[0])), f"unix://{home}/socket", (home, weights), log
        finally:
            owner.kill()


def own_client(engine) -> Client:
    return engine._servers.servers[0].client


def family(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def greedy(model, prompt, steps):
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def logprobs(model, ids):
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return table.gather(-1, torch.tensor(ids)[1:, None])[:, 0].tolist()


def test_nothing_is_generated_before_the_first_weights(engine):
    assert isinstance(engine, Engine) and isinstance(engine, Scoring) and not engine.shares_module
    if engine.weight_version == 0:
        with pytest.raises(RolloutError, match="has no weights yet"):
            engine.generate([[1]], SamplingParams(max_new_tokens=1))


def test_greedy_replies_are_transformers(pushed, model):
    replies = pushed.generate(PROMPTS, SamplingParams(temperature=0, max_new_tokens=12))
    assert [reply.token_ids for reply in replies] == [greedy(model, prompt, 12) for prompt in PROMPTS]
    assert {(reply.finish_reason, reply.weight_version) for reply in replies} == {("length", pushed.weight_version)}
    assert replies[0].logprobs == (0.0,) * 12 and replies[0].full_logprobs is None


def test_log_probabilities_are_transformers(pushed, model):
    replies = pushed.generate(PROMPTS, SamplingParams(n=2, max_new_tokens=10, seed=3))
    for row, reply in enumerate(replies):
        prompt = PROMPTS[row // 2]
        wanted = logprobs(model, [*prompt, *reply.token_ids])[len(prompt) - 1 :]
        assert reply.logprobs == reply.full_logprobs == pytest.approx(wanted, abs=1e-4)
    truncated = pushed.generate(PROMPTS, SamplingParams(top_p=0.9, max_new_tokens=10, seed=3))[0]
    assert truncated.logprobs is None and len(truncated.full_logprobs) == 10
    sequences = [[*PROMPTS[3], *replies[6].token_ids], [4, 5], [9]]
    for ids, found in zip(sequences, pushed.token_logprobs(sequences), strict=True):
        assert found == pytest.approx(logprobs(model, ids), abs=1e-4)


def test_a_seed_gives_a_reply_by_its_place_alone(pushed):
    params = SamplingParams(n=3, max_new_tokens=8, seed=11)
    replies = pushed.generate(PROMPTS, params)
    assert pushed.generate(PROMPTS, params) == replies and len(set(replies)) == len(replies) == 12
    assert pushed.generate(PROMPTS[:2], params) == replies[:6]
    assert pushed.generate(PROMPTS, dataclasses.replace(params, seed=12)) != replies
    unseeded = dataclasses.replace(params, seed=None)
    assert pushed.generate(PROMPTS, unseeded) != pushed.generate(PROMPTS, unseeded)


def test_stops_end_a_reply_and_are_part_of_it(pushed, model):
    first = greedy(model, PROMPTS[0], 12)
    params = SamplingParams(temperature=0, max_new_tokens=12, stop_token_ids=(first[4],))
    (reply,) = pushed.generate(PROMPTS[:1], params)
    assert reply.token_ids == first[: first.index(first[4]) + 1] and reply.finish_reason == "stop"
    held = dataclasses.replace(params, min_new_tokens=8)
    (later,) = pushed.generate(PROMPTS[:1], held)
    assert first[4] not in later.token_ids[:8] and len(later.token_ids) >= 8


def test_a_push_changes_the_replies_and_nothing_of_the_old_stays(pushed, model):
    other = build(seed=1)
    params = SamplingParams(temperature=0, max_new_tokens=6)
    pushed.generate(PROMPTS, params)  # fills the prefix cache
    pushed.update_weights(checkpoint_tensors(other), 40)
    replies = pushed.generate(PROMPTS, params)
    assert [reply.token_ids for reply in replies] == [greedy(other, prompt, 6) for prompt in PROMPTS]
    assert {reply.weight_version for reply in replies} == {40}
    pushed.update_weights(checkpoint_tensors(model), 41)
    assert pushed.generate(PROMPTS, params)[3].token_ids == greedy(model, PROMPTS[3], 6)


def test_a_push_cut_short_is_refused_and_the_next_whole_one_heals(pushed, model, monkeypatch):
    def cut(*arguments):
        push = write_push(*arguments)
        path = push.folder / push.files[0][0]
        path.write_bytes(path.read_bytes()[:-100])
        return push

    monkeypatch.setattr(delivery, "write_push", cut)
    with pytest.raises(RolloutError, match=r"its own are the old ones: .*was cut short"):
        pushed.update_weights(checkpoint_tensors(build(seed=2)), 50)
    with pytest.raises(RolloutError, match="got only a part of its last weights"):
        pushed.generate(PROMPTS, SamplingParams(max_new_tokens=4))
    monkeypatch.undo()
    pushed.update_weights(checkpoint_tensors(model), 51)
    reply = pushed.generate(PROMPTS, SamplingParams(temperature=0, max_new_tokens=6))[0]
    assert reply.token_ids == greedy(model, PROMPTS[0], 6) and reply.weight_version == 51


def test_a_wrong_name_set_is_refused_and_the_stream_is_read_to_its_end(pushed, model):
    tensors = list(checkpoint_tensors(model))
    read = []

    def noted(stream):
        for name, tensor in stream:
            read.append(name)
            yield name, tensor

    renamed = [(name.replace("q_proj", "x_proj"), tensor) for name, tensor in tensors]
    with pytest.raises(RolloutError, match=r"weight 'model\.layers\.0\.self_attn\.x_proj"):
        pushed.update_weights(noted(renamed), 60)
    assert len(read) == len(tensors)
    with pytest.raises(RolloutError, match=r"weight 'model\.norm\.weight' is missing"):
        pushed.update_weights([pair for pair in tensors if pair[0] != "model.norm.weight"], 61)


def test_a_reload_that_breaks_is_said_and_the_next_whole_push_heals(pushed, model, tmp_path):
    tensors = list(checkpoint_tensors(model))
    missing = [pair for pair in tensors if "layers.1.mlp" not in pair[0]]
    halved = [(name, tensor[:7] if "layers.1.mlp" in name else tensor) for name, tensor in tensors]
    broken = ((missing, r"weight 'model\.layers\.1\.mlp.*' .* was not in the push"), (halved, ":"))
    for version, (named_tensors, said) in enumerate(broken):
        push = write_push(tmp_path, named_tensors, version)
        call = {"method": "align_pull", "args": [str(tmp_path), push.files, push.digest]}
        (result,) = own_client(pushed).ask("/collective_rpc", call, timeout=60)["results"]
        assert result["undefined"] and re.search(said, result["problem"])
        pushed.update_weights(checkpoint_tensors(model), 70 + version)
        reply = pushed.generate(PROMPTS, SamplingParams(temperature=0, max_new_tokens=6))[0]
        assert reply.token_ids == greedy(model, PROMPTS[0], 6)


def status(client: Client, method: str, path: str, headers: dict[str, str]) -> int:
    body = b"{}" if method == "POST" else None
    socket = client.url.removeprefix("unix://")
    whole = {"timeout": 30.0, "largest": 2**20, "socket": socket, "method": method}
    return http.ask(f"http://localhost{path}", body, headers=headers, **whole).status


def test_every_route_of_the_server_wants_the_key(pushed):
    address = own_client(pushed)
    log = pushed._process.log.read_text()
    routes = {
        (method, re.sub(r"{[^}]*}", "x", path))
        for path, methods in re.findall(r"Route: (\S+), Methods: ([A-Z, ]+)", log)
        for method in methods.split(", ")
    }
    routes |= {
        (method.upper(), path)
        for path, item in address.ask("/openapi.json", timeout=30)["paths"].items()
        for method in item
    }
    needed = {
        ("POST", "/collective_rpc"),
        ("POST", "/invocations"),
        ("GET", "/health"),
        ("POST", "/inference/v1/generate"),
    }
    assert needed <= routes and len(routes) > 30
    routes |= {("OPTIONS", "/invocations"), ("GET", "/no/such/route")}
    routes |= {("POST", ROUTE), ("PUT", f"{ROUTE}/{'0' * 64}/0")}
    for headers in ({}, {"Authorization": f"Bearer {address.key[:-1]}x"}):
        assert {(route, status(address, *route, headers)) for route in routes} == {(route, 401) for route in routes}
    right = {"Authorization": f"Bearer {address.key}"}
    for path in ("/health", "/version", "/v1/models", "/openapi.json", "/weight_info"):
        assert status(address, "GET", path, right) == 200
    assert status(address, "POST", ROUTE, right) == 400  # it is there, and says what it wants
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    assert status(address, "GET", "/v1/realtime", upgrade | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}) in (
        401,
        403,
    )
    assert address.key not in log


def test_the_socket_is_in_a_private_folder_and_the_key_in_no_command_line(pushed):
    server = pushed._process
    assert server.home.stat().st_mode & 0o777 == 0o700 and server.log.stat().st_mode & 0o777 == 0o600
    key = own_client(pushed).key.encode()
    processes = family(server.pid)
    assert len(processes) >= 3 and all(key not in " ".join(process.cmdline()).encode() for process in processes)
    workers = [process for process in processes if "VLLM" in process.name()]
    assert workers and all(key.decode() not in process.environ().values() for process in workers)


@pytest.mark.parametrize(
    ("prompts", "params", "said"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1] * 294], {"max_new_tokens": 7}, "prompt 0 has 294 tokens, and 293 fit into max_model_len 300"),
        ([[VOCABULARY]], {}, f"an id outside the model's vocabulary of {VOCABULARY}"),
        ([[1]], {"return_support": True}, "which ids could be drawn: use rollout engine hf"),
    ],
)
def test_what_cannot_be_asked_is_refused_here(pushed, prompts, params, said):
    with pytest.raises(RolloutError, match=said):
        pushed.generate(prompts, SamplingParams(**({"max_new_tokens": 4} | params)))


def test_a_server_of_another_model_or_key_or_none_is_refused(pushed, monkeypatch):
    address = own_client(pushed)
    monkeypatch.setenv("SOME_KEY", address.key)
    there = {"urls": (address.url,), "api_key_env": "SOME_KEY"}
    with pytest.raises(RolloutError, match=r"holds another model: its vocab_size is 300, the policy's is 304"):
        VLLMServerEngine(build(vocab_size=304), settings(**there))
    with pytest.raises(RolloutError, match=r"takes 301 tokens, max_model_len asks for 400: start it with"):
        VLLMServerEngine(build(), settings(**there, max_model_len=400))
    with pytest.raises(RolloutError, match=r"must be started with --logprobs processed for this temperature"):
        VLLMServerEngine(build(), settings(**there), temperature=0.7)
    with pytest.raises(RolloutError, match=r"http://127.0.0.1:9 cannot be reached.*vllm.serve` running there"):
        VLLMServerEngine(build(), settings(urls=("http://127.0.0.1:9",), api_key_env="SOME_KEY"))
    monkeypatch.setenv("SOME_KEY", "another key"[::-1].replace(" ", "-") * 3)
    with pytest.raises(RolloutError, match=r"does not take the key \(status 401\)"):
        VLLMServerEngine(build(), settings(**there))
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(RolloutError, match="SOME_KEY must hold the key of the server, and is not set"):
        VLLMServerEngine(build(), settings(**there))


def test_two_servers_share_the_work_and_one_that_dies_with_its_owner_leaves_it_to_the_other(
    pushed, second, model, monkeypatch, caplog
):
    owner, processes, url, folders, log = second
    params = SamplingParams(n=2, max_new_tokens=8, seed=5)
    wanted = pushed.generate(PROMPTS, params)
    monkeypatch.setenv("SOME_KEY", own_client(pushed).key)
    urls = (own_client(pushed).url, url)
    both = VLLMServerEngine(model, settings(urls=urls, api_key_env="SOME_KEY"))
    both.update_weights(checkpoint_tensors(model), 7)
    replies = both.generate(PROMPTS, params)
    assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in wanted]
    assert {reply.weight_version for reply in replies} == {7}

    # The first server now carries the other engine's mark: what it says is refused until it has its weights again.
    asked, ask = [], Client.ask
    monkeypatch.setattr(Client, "ask", lambda own, path, *a, **b: (asked.append(path), ask(own, path, *a, **b))[1])
    again = pushed.generate(PROMPTS, params)
    assert again == wanted and asked.count(GENERATE) == 16

    assert len(processes) >= 3 and all(folder.is_dir() for folder in folders)
    owner.kill()
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    with caplog.at_level("WARNING"):
        alone = both.generate(PROMPTS, params)
    assert [reply.token_ids for reply in alone] == [reply.token_ids for reply in wanted]
    assert both._servers.servers[1].lost is not None and url in caplog.text
    both.close()
    assert own_client(pushed).ask("/health", timeout=30) is None  # a server given by URL is not ours to end
    deadline = time.monotonic() + 60
    while any(folder.exists() for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    log.unlink()


def test_one_call_at_a_time_from_several_threads(pushed, model):
    params = SamplingParams(temperature=0, max_new_tokens=6)
    found = []
    calls = [threading.Thread(target=lambda: found.append(pushed.generate(PROMPTS, params))) for _ in range(3)]
    for call in calls:
        call.start()
    pushed.update_weights(checkpoint_tensors(model), 90)
    for call in calls:
        call.join()
    assert {tuple(reply.token_ids for reply in replies) for replies in found} == {
        tuple(greedy(model, prompt, 6) for prompt in PROMPTS)
    }


def test_closing_from_another_thread_ends_a_call_that_runs(pushed, monkeypatch):
    """The last one with this server."""
    asked, ask, found = threading.Event(), Client.ask, []

    def noted(client, path, *args, **kwargs):
        if path == GENERATE:
            asked.set()
        return ask(client, path, *args, **kwargs)

    def call():
        try:
            found.append(pushed.generate(PROMPTS, SamplingParams(n=20, max_new_tokens=140)))
        except RolloutError as error:
            found.append(error)

    monkeypatch.setattr(Client, "ask", noted)
    server = pushed._process
    processes, thread = family(server.pid), threading.Thread(target=call)
    thread.start()
    assert asked.wait(60)
    pushed.close()
    thread.join()
    assert isinstance(found[0], RolloutError) and "closed" in str(found[0])
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    assert not server.log.exists() and not server.home.exists()
