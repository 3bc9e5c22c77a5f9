"""Servers that die, hang, do not start, and owners that die: nothing is lost, nothing is asked twice, nothing stays."""

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.settings import memory_hint
from rollouts.vllm.client import Client, ServerGone
from rollouts.vllm.process import ServerProcess, last_error
from rollouts.vllm.restart import Restarts, start_of, take_away
from rollouts.vllm.server_engine import VLLMServerEngine
from rollouts.vllm.servers import GENERATE
from rollouts.weights import checkpoint_tensors
from tests.rollouts.vllm.models import build, logits_after, settings

real = [pytest.mark.needs("vllm"), pytest.mark.slow]
LONG = SamplingParams(n=4, temperature=0.7, max_new_tokens=120, seed=2)
PROMPTS = [[5, 6, 7, 8, 9], [3], [11, 12, 13], [20, 21]]


class TwoRanks:
    """Runs the same on an owner and another rank, in two threads; `share` is a broadcast of the owner's object."""

    def __init__(self):
        self.barrier, self.box = threading.Barrier(2), None

    def share(self, owner):
        def call(shared):
            if owner:
                self.box = shared
            self.barrier.wait(300)
            found = self.box
            self.barrier.wait(300)
            return found

        return call

    def both(self, action):
        results = [None, None]

        def work(rank):
            try:
                results[rank] = action(rank == 0)
            except RolloutError as error:
                results[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def ranks(model):
    """The engines of two ranks on one server that works on 4 replies at once."""
    pair = TwoRanks()
    small = settings(max_num_seqs=4, request_timeout=20.0, max_restarts=1)
    engines = pair.both(
        lambda owner: VLLMServerEngine(model, small, is_owner=owner, share=pair.share(owner), temperature=0.7)
    )
    assert all(isinstance(engine, VLLMServerEngine) for engine in engines), engines
    engines.append(pair)
    yield engines
    for engine in engines[:2]:
        engine.close()


@pytest.fixture(scope="module")
def undisturbed(ranks, model):
    owner, other, pair = ranks
    results = pair.both(lambda is_owner: (owner if is_owner else other).update_weights(checkpoint_tensors(model), 5))
    assert results == [None, None]
    return owner.generate(PROMPTS, LONG)


def server_of(engine) -> ServerProcess:
    return engine._process


def restarts_of(engine) -> int:
    return engine._servers._restarts.count


def family(server: ServerProcess) -> list[psutil.Process]:
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


@pytest.fixture
def in_the_middle(monkeypatch):
    """What `generate` gives when `act` happens after some replies have come and before the last; requests it made."""
    asked, ask = [], Client.ask

    def counted(client, path, *args, **kwargs):
        if path == GENERATE:
            asked.append(path)
        return ask(client, path, *args, **kwargs)

    monkeypatch.setattr(Client, "ask", counted)

    def run(engine, act):
        found = []

        def call():
            try:
                found.append(engine.generate(PROMPTS, LONG))
            except RolloutError as error:
                found.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        while len(asked) < 9:  # five replies are there
            assert thread.is_alive()
            time.sleep(0.01)
        assert thread.is_alive()
        act()
        thread.join()
        return found[0], len(asked)

    return run


class TestFaults:
    """One server to its end."""

    pytestmark = real

    def test_log_probabilities_are_those_of_another_temperature(self, undisturbed, model):
        for row, reply in enumerate(undisturbed):
            prompt = PROMPTS[row // LONG.n]
            logits_TV = logits_after(model, [*prompt, *reply.token_ids], len(prompt))
            wanted = (logits_TV / 0.7).log_softmax(-1).gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0]
            assert reply.logprobs == reply.full_logprobs == pytest.approx(wanted.tolist(), abs=1e-4)

    def test_kill_9_in_the_middle_loses_nothing_of_a_rank_that_does_not_own_the_server(
        self, ranks, undisturbed, in_the_middle
    ):
        owner, other, _ = ranks

        def kill():
            core = next(process for process in family(server_of(owner)) if "EngineCore" in process.name())
            core.kill()

        replies, asked = in_the_middle(other, kill)
        assert replies == undisturbed and len(replies) == 16
        assert restarts_of(owner) == 1
        assert 16 < asked <= 16 + 4  # those that were being made, and no others, were asked again

    def test_one_that_hangs_is_killed_and_too_many_restarts_are_an_error_on_every_rank(
        self, ranks, undisturbed, in_the_middle
    ):
        owner, other, _ = ranks
        stopped = []

        def stop():
            stopped.extend(family(server_of(owner)))
            for process in stopped:
                process.suspend()

        problem, _ = in_the_middle(other, stop)
        assert not any(process.is_running() and process.status() != "zombie" for process in stopped)
        log = f"its log is {server_of(owner).log}"
        assert str(problem).endswith(f"the rank that owns it gave it up or closed it: {log}")
        said = f"the vLLM server hangs, and was started again 1 times already (max_restarts): {log}"
        with pytest.raises(RolloutError) as raised:
            owner.generate(PROMPTS, LONG)
        assert str(raised.value) == said

    def test_closing_leaves_nothing(self, ranks, undisturbed):
        owner, other, _ = ranks
        server, folder = server_of(owner), owner._folder
        owner.close()
        other.close()
        assert not server.home.exists() and not folder.exists() and not server.alive
        server.log.unlink()  # of a server that was given up
        with pytest.raises(RolloutError, match="this engine was closed"):
            owner.generate(PROMPTS, LONG)


def test_a_server_that_does_not_start_says_why(tmp_path):
    server = ServerProcess(start_timeout=120)
    server.arguments = ["--model", str(tmp_path)]
    said = rf"ended with code 2: .*error: .* required: --max-model-len \(its log: {server.log}\)"
    with pytest.raises(RolloutError, match=said):
        server.start()
    server.stop()
    assert server.log.exists() and not server.home.exists()
    server.log.unlink()


class Counting:
    """A server that counts its starts; a file is its socket. `problems` are raised by the next starts."""

    def __init__(self, folder, problems=()):
        self.log, self.socket, self.problems = folder / "log", folder / "socket", list(problems)
        self.starts, self.stops, self.alive = 0, 0, True
        self.socket.touch()

    def start(self):
        self.kill()
        self.starts += 1
        if self.problems and (problem := self.problems.pop(0)):
            raise problem
        self.socket.touch()
        self.alive = True

    def kill(self):
        self.alive = False
        self.socket.unlink(missing_ok=True)

    def stop(self):
        self.stops += 1


@pytest.fixture
def watched(tmp_path, monkeypatch):
    monkeypatch.setattr("rollouts.vllm.restart.CHECK_EVERY", 0.01)
    made = []

    def make(*, most=2, problems=(), push=lambda: None):
        server = Counting(tmp_path, problems)
        made.append(Restarts(server, most, push))
        return server, made[-1]

    yield make
    for restarts in made:
        restarts.close()


def until(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_server_that_died_is_started_once_and_gets_its_weights(watched):
    pushed = []
    server, restarts = watched(push=lambda: pushed.append(server.starts))
    server.kill()
    until(lambda: pushed)
    time.sleep(0.05)
    assert (server.starts, pushed, restarts.count, restarts.problem) == (1, [1], 1, "")


def test_a_server_that_hangs_is_started_again_however_many_say_so(watched):
    server, _ = watched()
    start = start_of(server.socket)
    for _ in range(5):
        take_away(server.socket, start)
    until(lambda: server.alive and server.starts == 1)
    for _ in range(5):
        take_away(server.socket, start)  # of ranks that were slow to see it
    time.sleep(0.05)
    assert server.starts == 1 and server.socket.exists()
    take_away(server.socket, start_of(server.socket))
    until(lambda: server.starts == 2)


def test_restarts_end_and_the_log_is_named(watched):
    server, restarts = watched(most=1)
    server.kill()
    until(lambda: server.alive and server.starts == 1)
    take_away(server.socket, start_of(server.socket))
    until(lambda: server.stops)
    wanted = f"the vLLM server hangs, and was started again 1 times already (max_restarts): its log is {server.log}"
    assert restarts.problem == wanted and (server.starts, server.stops, server.alive) == (1, 1, False)


def test_a_restart_that_fails_at_its_weights_counts_too(watched):
    def push():
        if server.starts == 1:
            raise ServerGone("broke off")

    server, restarts = watched(push=push)
    server.kill()
    until(lambda: server.alive and server.starts == 2)
    assert restarts.count == 2 and not restarts.problem


def test_a_server_that_does_not_come_up_is_given_up(watched):
    server, restarts = watched(problems=[RolloutError("no room on the GPU")])
    server.kill()
    until(lambda: server.stops)
    assert restarts.problem == "no room on the GPU" and server.stops == 1


def test_a_server_s_socket_fits_into_a_short_private_folder_whatever_tmpdir_is(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    server = ServerProcess(start_timeout=1)
    try:
        assert len(str(server.socket)) <= 100 and server.home.stat().st_mode & 0o777 == 0o700
        assert server.log.parent == deep and list(deep.iterdir()) == [server.log]
    finally:
        server.stop()
        server.log.unlink()
    assert not server.home.exists()


def test_the_entry_refuses_to_run_without_a_key_or_with_one_for_all_to_see(tmp_path):
    command = [sys.executable, "-m", "rollouts.vllm.serve", "--model", str(tmp_path), "--max-model-len", "8"]
    bare = {name: value for name, value in os.environ.items() if name != "ALIGN_VLLM_API_KEY"}
    done = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert done.returncode == 1 and "ALIGN_VLLM_API_KEY must hold the key" in done.stderr
    assert "Traceback" not in done.stderr
    for option in ("--api-key", "--api_key=secret", "--api-ke"):
        done = subprocess.run([*command, option, "secret"], env=bare, capture_output=True, text=True)
        assert done.returncode == 1 and "would show the key to every user" in done.stderr
    done = subprocess.run([*command[:3], "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--api-key-env" in done.stdout and "--owner" not in done.stdout


LOG = """
(EngineCore pid=7) ERROR 11-21 18:10:11 [core.py:1512]     raise RuntimeError(
(EngineCore pid=7) ERROR 11-21 18:10:11 [core.py:1512] ValueError: no room for 8 blocks
(MainProcess pid=5) ERROR 11-21 18:10:11 [x.py:9] RuntimeError: Engine core failed. See root cause above.
(MainProcess pid=5) INFO 11-21 18:10:12 [x.py:9] bye
"""


def test_the_last_error_of_a_log_is_its_cause():
    assert last_error(LOG) == "ValueError: no room for 8 blocks"
    assert last_error("one\n two \n\n") == "two" and last_error("") == ""
    assert last_error("torch.cuda.OutOfMemoryError: 9 GiB\n") == "torch.cuda.OutOfMemoryError: 9 GiB"


def test_errors_about_memory_name_the_recipes_keys():
    for said in (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "ValueError: To serve at least one request, 1.5 GiB KV cache is needed",
        "torch.cuda.OutOfMemoryError: 9 GiB",
    ):
        assert "ppo.rollout.vllm.kv_cache_gib" in memory_hint(said)
    assert memory_hint("ValueError: no such model") == ""
