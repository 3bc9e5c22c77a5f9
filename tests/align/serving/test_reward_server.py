"""A real server on loopback, in this process and in one of its own that is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from align import cli
from align.runtime import http
from align.runtime.address import AddressInUseError, listen
from align.serving import bodies
from align.serving.reward_server import RewardServer
from data_formats.records import Message
from reward.combined import CombinedReward, Part
from reward.endpoint import EndpointReward
from reward.failures import judge_all
from reward.protocol import RewardError, RewardUnavailableError, Sample
from reward.sources import FunctionReward, load_reward
from tests.align.commands.test_evaluate_reward import save_reward
from tests.commands import INSTALLED, ROOT

KEY = "a-key-of-the-test"
SAMPLES = [Sample((Message("user", f"q{at % 3}"),), "ab" * (at + 1)) for at in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_reward(tmp_path_factory.mktemp("model"))


@contextlib.contextmanager
def served(reward, most=4096):
    server = RewardServer(reward, "it", KEY, most)
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.serve, args=(listening,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
    finally:
        server.end()
        thread.join()


def ask(url, body=None, key=KEY, headers=None):
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {key}"} if key else {}
    answer = http.ask(url, content, headers=given | (headers or {}), timeout=20, largest=1 << 20)
    return answer.status, json.loads(answer.content)


def client(url, **options):
    return EndpointReward(url, **{"api_key_env": "KEY_OF_TEST", "backoff": 0.02} | options)


def by_length(prompts, completions):
    if any("bad" in text for text in completions):
        raise ValueError("this one")
    return [float(len(text)) for text in completions]


def test_our_client_gets_the_models_scores_in_every_shape(folder, monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    expected = load_reward(folder).score(SAMPLES)
    with served(load_reward(folder)) as (url, _):
        for path in ("", "/score", "/pooling", "/classify"):
            assert client(url + path).score(SAMPLES) == pytest.approx(expected, abs=1e-5), path
        assert ask(f"{url}/health", key="")[1] == {"status": "ok", "server": "align serve-reward"}
        known = ask(f"{url}/health")[1]
        assert known["replies"] == 40 and known["calls"] < 40 and known["reward"] == "it"
        rows = load_reward(folder).token_rows(SAMPLES[:2])
        body = {"input": rows, "use_activation": False}
        data = ask(f"{url}/pooling", body)[1]["data"]
        assert [datum["data"][0] for datum in data] == pytest.approx(expected[:2], abs=1e-5)
        (given,) = ask(f"{url}/classify", {"input": rows[0]})[1]["data"]
        assert given["probs"] == pytest.approx([torch.tensor(expected[0]).sigmoid().item()], abs=1e-5)
        assert ask(f"{url}/classify", {"input": [10**6]})[0] == 422


def test_only_with_the_key_within_bounds_and_in_shape(monkeypatch):
    monkeypatch.setattr(bodies, "LARGEST_BODY", 500)
    good = {"prompt": "q", "completion": "abc"}
    with served(FunctionReward(by_length)) as (url, server):
        for key in ("", "wrong", "a-key-of-the-tes", "ü"):
            headers = {"Authorization": f"Bearer {key}".encode()} if key == "ü" else None
            status, answer = ask(f"{url}/score", good, key="" if key == "ü" else key, headers=headers)
            assert status == 401 and "key" in answer["error"]["message"]
        assert ask(f"{url}/score", good) == (200, {"scores": [3.0]})
        assert ask(f"{url}/score", {"prompt": "q", "completion": "a" * 600})[0] == 413
        for body in (b"{", b"[" * 400, b"\xff", {"inputs": 3}):
            status, answer = ask(f"{url}/score", body)
            assert status == 400 and answer["error"]["code"] == 400
        status, answer = ask(f"{url}/score", b'{"prompt": "q", "completion": "a\\uD83D"}')
        assert status == 422 and "half of a surrogate pair" in answer["error"]["message"]
        assert ask(f"{url}/score", {"prompt": "\U0001f600", "completion": "a"}) == (200, {"scores": [1.0]})
        assert ask(f"{url}/score", {"inputs": []}) == (200, {"scores": []})
        assert server.scorer.failed == 0


def test_a_request_fails_for_its_own_replies_alone(monkeypatch):
    """Though all of them were scored in one call."""
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    held = threading.Event()
    sizes = []

    def waiting(prompts, completions):
        sizes.append(len(completions))
        if len(sizes) == 1:
            held.wait(10)
        return by_length(prompts, completions)

    whole = CombinedReward([Part(FunctionReward(waiting, "long"), 2.0)])
    with served(whole) as (url, server), ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask, f"{url}/score", {"prompt": "q", "completion": "a"})
        while not sizes:
            time.sleep(0.01)
        others = [
            pool.submit(ask, f"{url}/score", {"prompt": "q", "completion": text}) for text in ("ab", "bad", "abcd")
        ]
        while server.scorer._queue.qsize() < 3:
            time.sleep(0.01)
        held.set()
        assert first.result() == (200, {"scores": [2.0], "parts": {"long": [1.0]}})
        found = [one.result() for one in others]
    assert [found[0][1]["scores"], found[2][1]["scores"]] == [[4.0], [8.0]]
    assert found[1][0] == 422 and "this one" in found[1][1]["error"]["message"]
    assert max(sizes) >= 3 and server.scorer.failed >= 1


def test_a_reply_that_is_too_long_fails_alone_and_the_client_can_leave_it_out(folder, monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", KEY)
    reward = load_reward(folder)
    with served(reward, most=60) as (url, _):
        asked = [*SAMPLES[:3], Sample((Message("user", "q"),), "a" * 100)]
        with pytest.raises(RewardError, match="a batch takes at most 60"):
            client(url).score(asked)
        verdict, failures = judge_all(client(url), asked, "mask", 1)
    assert len(failures) == 1 and verdict.scores[3] != verdict.scores[3]
    assert verdict.scores[:3] == pytest.approx(load_reward(folder).score(SAMPLES[:3]), abs=1e-5)


def test_a_wrong_key_is_nobodys_reply_and_an_address_can_be_taken(monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", "another-key")
    with served(FunctionReward(by_length)) as (url, _):
        with pytest.raises(RewardUnavailableError, match="401"):
            client(f"{url}/score").score(SAMPLES[:1])
        with pytest.raises(AddressInUseError, match="choose another --port"):
            listen("127.0.0.1", int(url.rpartition(":")[2]))


def start(folder, port, *words, key=KEY):
    """`align serve-reward` in a process of its own, and what it says until it serves."""
    command = [sys.executable, "-m", "align.cli", "serve-reward", str(folder), "--port", str(port), *words]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=INSTALLED | {"OMP_NUM_THREADS": "1", "KEY_OF_TEST": key},
        stdout=subprocess.PIPE,
        text=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("in a recipe"):
            break
    return process, "".join(said)


@pytest.mark.slow
def test_200_clients_lose_nothing_while_the_server_is_killed_and_started_again(folder, monkeypatch):
    """With a key of its own, which it says once; then with the same one, given to it; ended by Ctrl-C."""
    process, said = start(folder, 0)
    key = said.partition("ALIGN_REWARD_KEY=")[2].split()[0]
    assert len(key) >= 32 and said.count(key) == 1
    monkeypatch.setenv("KEY_OF_TEST", key)
    port = int(said.partition("127.0.0.1:")[2].partition(" ")[0])
    clients, rounds = 200, 2
    samples = {
        (one, at): Sample((Message("user", f"q{one}"),), "ab" * (1 + (one * rounds + at) % 20))
        for one in range(clients)
        for at in range(rounds)
    }
    found, killed = {}, threading.Event()

    def loop(one):
        reward = client(f"http://127.0.0.1:{port}", backoff=1.0, timeout=60)
        for at in range(rounds):
            if at == rounds // 2 and one % 2:
                killed.wait(60)  # half of them have work left when the server is gone
            (found[one, at],) = reward.score([samples[one, at]])

    with ThreadPoolExecutor(clients) as pool:
        loops = [pool.submit(loop, one) for one in range(clients)]
        while len(found) < clients:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed.set()
        process, said = start(folder, port, "--key", "KEY_OF_TEST", key=key)
        for one in loops:
            one.result()
    assert key not in said and "api_key_env: KEY_OF_TEST" in said
    expected = load_reward(folder).score(list(samples.values()))
    assert found.keys() == samples.keys()
    assert [found[place] for place in samples] == pytest.approx(expected, abs=1e-4)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and rest.strip() == "ended"


def test_a_key_that_guards_nothing_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    for key in ("", "short", "with a space in it", "schlüssel-schlüssel"):
        monkeypatch.setenv("KEY_OF_TEST", key)
        assert cli.main(["serve-reward", "/no/such", "--port", "0", "--key", "KEY_OF_TEST"]) == 1
        assert "KEY_OF_TEST must hold a key" in capsys.readouterr().err
