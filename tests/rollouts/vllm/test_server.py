"""Servers that die, hang, do not start, and owners that die: nothing is lost, nothing is asked twice, nothing stays."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams
from rollouts.settings import memory_hint
from rollouts.vllm.client import VLLMServerEngine
from rollouts.vllm.server import VLLMServer, last_error
from rollouts.weights import checkpoint_tensors
from tests.rollouts.vllm.models import build, logits_after, settings

real = [pytest.mark.needs("vllm"), pytest.mark.slow]
LONG = SamplingParams(n=6, max_new_tokens=500, seed=2)
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
    return build(max_position_embeddings=1024)


@pytest.fixture(scope="module")
def ranks(model):
    """The engines of two ranks on one server that works on 4 replies at once."""
    pair = TwoRanks()
    small = settings(max_model_len=640, max_num_seqs=4, request_timeout=20.0, max_restarts=2)
    engines = pair.both(lambda owner: VLLMServerEngine(model, small, is_owner=owner, share=pair.share(owner)))
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


def server_of(engine) -> VLLMServer:
    return engine._backend._keeper.server


def family(server: VLLMServer) -> list[psutil.Process]:
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


def in_the_middle(engine, act):
    """What `generate` gives when `act` happens after some replies have come and before the last."""
    fleet, found = engine._backend.fleet, []
    before = fleet.asked

    def call():
        try:
            found.append(engine.generate(PROMPTS, LONG))
        except RolloutError as error:
            found.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while fleet.asked - before < 9:  # five replies are there
        assert thread.is_alive()
        time.sleep(0.01)
    assert thread.is_alive()
    act()
    thread.join()
    return found[0], fleet.asked - before


class TestFaults:
    pytestmark = real

    def test_kill_9_in_the_middle_loses_nothing(self, ranks, undisturbed):
        owner = ranks[0]

        def kill():
            core = next(process for process in family(server_of(owner)) if "EngineCore" in process.name())
            core.kill()

        replies, asked = in_the_middle(owner, kill)
        assert replies == undisturbed and len(replies) == 24
        assert server_of(owner).starts == 2
        assert 24 < asked <= 24 + 4  # those that were being made, and no others, were asked again

    def test_a_server_that_hangs_is_started_again_for_a_rank_that_does_not_own_it(self, ranks, undisturbed):
        owner, other, _ = ranks
        stopped = []

        def stop():
            stopped.extend(family(server_of(owner)))
            for process in stopped:
                process.suspend()

        replies, asked = in_the_middle(other, stop)
        assert replies == undisturbed and asked <= 24 + 4
        assert server_of(owner).starts == 3
        assert not any(process.is_running() and process.status() != "zombie" for process in stopped)

    def test_too_many_restarts_are_an_error_on_every_rank(self, ranks, undisturbed):
        owner, other, pair = ranks
        server_of(owner).kill()
        problems = pair.both(lambda is_owner: (owner if is_owner else other).generate(PROMPTS, LONG))
        for problem in problems:
            assert isinstance(problem, RolloutError), problem
            assert "started again 2 times already (max_restarts): its log is" in str(problem)

    def test_closing_leaves_nothing(self, ranks, undisturbed):
        owner, other, _ = ranks
        server, folder = server_of(owner), owner._backend._folder
        owner.close()
        other.close()
        assert not server.home.exists() and not folder.exists() and not server.alive
        server.log.unlink()  # of a server that was given up
        with pytest.raises(RolloutError, match="this engine was closed"):
            owner.generate(PROMPTS, LONG)


OWNER = """
    import sys, time
    from rollouts.vllm.client import VLLMServerEngine
    from rollouts.weights import checkpoint_tensors
    from tests.rollouts.vllm.models import build, settings

    engine = VLLMServerEngine(build(), settings())
    engine.update_weights(checkpoint_tensors(build()), 1)
    server = engine._backend._keeper.server
    print(server.pid, server.home, engine._backend._folder, server.log, flush=True)
    time.sleep(600)
"""


class TestOwner:
    pytestmark = real

    def test_a_server_dies_with_its_owner(self):
        program = textwrap.dedent(OWNER)
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
            said = owner.stdout.readline().split()
            assert said, "the owner did not start its server"
            root = psutil.Process(int(said[0]))
            processes = [root, *root.children(recursive=True)]
            home, weights, log = map(Path, said[1:])
            assert len(processes) >= 3 and home.is_dir() and list(weights.glob("*.safetensors"))
            owner.send_signal(signal.SIGKILL)
            _, alive = psutil.wait_procs(processes, timeout=30)
            assert alive == []
        deadline = time.monotonic() + 10
        while (home.exists() or weights.exists()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not home.exists() and not weights.exists()
        log.unlink()

    def test_closing_from_another_thread_ends_a_call_that_runs(self, model):
        engine = VLLMServerEngine(model, settings(max_model_len=640, max_num_seqs=4), temperature=0.7)
        engine.update_weights(checkpoint_tensors(model), 1)
        warm = SamplingParams(temperature=0.7, max_new_tokens=8, seed=1)
        for prompt, reply in zip(PROMPTS, engine.generate(PROMPTS, warm), strict=True):
            logits_TV = logits_after(model, [*prompt, *reply.token_ids], len(prompt))
            wanted = (logits_TV / 0.7).log_softmax(-1).gather(-1, torch.tensor(reply.token_ids)[:, None])[:, 0]
            assert reply.logprobs == reply.full_logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        processes = family(server_of(engine))
        problem, _ = in_the_middle(engine, engine.close)
        assert isinstance(problem, RolloutError) and "closed" in str(problem)
        assert psutil.wait_procs(processes, timeout=30)[1] == []
        assert not server_of(engine).log.exists()

    def test_a_server_that_does_not_start_says_why(self, tmp_path):
        server = VLLMServer(["--model", str(tmp_path), "--max-model-len", "8"], start_timeout=120)
        with pytest.raises(RolloutError, match=rf"ended with code \d+: .*Error.*\(its log: {server.log}\)"):
            server.start()
        server.stop()
        assert server.log.exists() and not server.home.exists()
        server.log.unlink()


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
