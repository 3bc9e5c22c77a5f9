"""PPO that samples from several servers given by address, one of which is killed and one of which joins: the weights
are those of the undisturbed run. The servers see nothing of the trainer's folder, so weights go over HTTP."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
import torch

from rollouts.vllm import servers as servers_module
from rollouts.vllm.client import Client, ServerGone
from rollouts.vllm.setup import serve_arguments, write_config
from tests.align.trainers import servers_run
from tests.align.trainers.servers_run import Disturbance
from tests.ranks import on_ranks
from tests.rollouts.vllm.light_server import KEY, LightServer
from tests.rollouts.vllm.models import settings


def learnt(folder):
    return torch.load(folder / "learnt.pt", weights_only=True)


def require_equal(folder, other):
    one, two = learnt(folder), learnt(other)
    assert all(torch.equal(a, b) for a, b in zip(one["weights"], two["weights"], strict=True))
    assert one["history"] == two["history"] and len(one["history"]) >= servers_run.ITERATIONS
    assert all(line["engine/probe_max"] < 1e-3 for line in one["history"] if "engine/probe_max" in line)


@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_server_that_is_killed_and_one_that_joins_change_nothing(tmp_path, monkeypatch, caplog, kind):
    """With a transformers model behind each server; of LoRA the adapter alone goes over after the first push."""
    sent, put = [], Client.put

    def noted(client, path, content, *, timeout):
        sent.append((client.url, len(content)))
        return put(client, path, content, timeout=timeout)

    monkeypatch.setattr(Client, "put", noted)
    monkeypatch.setenv("ALIGN_VLLM_API_KEY", KEY)
    monkeypatch.setattr(servers_module, "PAUSE", 0.0)
    with ExitStack() as stack:
        lights = [LightServer(servers_run.policy(), sees=at == 0) for at in range(3)]
        for light in lights:
            stack.callback(light.close)
        first, dies, joins = lights
        urls = (first.url, dies.url)
        servers_run.train(tmp_path / "calm", urls, None, kind)
        calm = first.answered + dies.answered
        assert first.answered and dies.answered
        first.answered = dies.answered = 0
        caplog.clear()
        sent.clear()
        with caplog.at_level("INFO"):
            servers_run.train(tmp_path / "disturbed", urls, Disturbance(dies.url, joins.url), kind)
        said = [message for message in caplog.messages if "127.0.0.1" in message]
        assert first.answered + dies.answered + joins.answered == calm and joins.answered
    require_equal(tmp_path / "calm", tmp_path / "disturbed")
    assert any(f"{dies.url} cannot be reached or broke off" in line for line in said)
    assert [line for line in said if "joins" in line or "leaves" in line] == [
        f"{joins.url} joins",
        f"{dies.url} leaves",
    ]
    elsewhere = [line.split()[0] for line in said if "weights go there over HTTP" in line]
    assert elsewhere == [dies.url, joins.url]
    sizes = [size for url, size in sent if url == joins.url]
    assert len(sizes) >= 3 and all(size < sizes[0] / 5 for size in sizes[1:]) == (kind == "lora")


@contextmanager
def elsewhere(folder, hidden):
    """A real server that does not see `hidden`, in a name space of its own: its process and address."""
    folder.mkdir()
    write_config(servers_run.policy(), folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
    command += [sys.executable, "-m", "rollouts.vllm.serve", "--port", str(port)]
    command += serve_arguments(servers_run.policy(), folder, settings(max_model_len=60), "raw_logprobs")
    own = os.environ | {"OMP_NUM_THREADS": "1", "ALIGN_VLLM_PUSH_FOLDER": str(folder)}  # gone with it when it is killed
    how = {"env": own, "start_new_session": True, "stderr": subprocess.STDOUT}
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, **how) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process, url, log):
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        with suppress(ServerGone):
            return Client(url, KEY).ask("/health", timeout=5)
        time.sleep(0.5)
    raise AssertionError(f"{url} did not come up")


def on_two_ranks(folder, addresses, pid=None, **place):
    """An undisturbed run and one in which the second server is killed and the third joins."""
    first, dies, joins = addresses
    key = {"ALIGN_VLLM_API_KEY": KEY, **place}
    on_ranks(2, servers_run.main, folder / "calm", (first, dies), None, environment=key)
    on_ranks(2, servers_run.main, folder / "disturbed", (first, dies), Disturbance(dies, joins, pid), environment=key)
    require_equal(folder / "calm", folder / "disturbed")
    said = [(folder / f"disturbed.rank{rank}.log").read_text() for rank in (0, 1)]
    print(said[0])
    assert f"{joins} joins" in said[0] and f"{dies} leaves" in said[0] and "weights go there over HTTP" in said[0]
    assert all(f"{dies} cannot be reached or broke off" in one for one in said)


@pytest.mark.slow
def test_two_ranks_share_servers_that_die_and_join(tmp_path):
    with ExitStack() as stack:
        lights = [LightServer(servers_run.policy()) for _ in range(3)]
        for light in lights:
            stack.callback(light.close)
        on_two_ranks(tmp_path, [light.url for light in lights])
        assert all(light.answered for light in lights)


@pytest.mark.slow
@pytest.mark.needs("vllm")
@pytest.mark.skipif((os.cpu_count() or 1) < 8, reason="vLLM ends steps of three servers on fewer cores")
def test_two_ranks_share_vllm_servers_that_die_and_join(tmp_path, monkeypatch):
    """Three real servers; two for the undisturbed run, two and a third for the other."""
    hidden = tmp_path / "push"
    hidden.mkdir()
    able = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(hidden)]
    if shutil.which("unshare") is None or subprocess.run(able, capture_output=True).returncode:
        pytest.skip("this machine gives no name space of its own to a process (unshare -rm)")
    monkeypatch.setenv("ALIGN_VLLM_API_KEY", KEY)
    with ExitStack() as stack:
        found = [stack.enter_context(elsewhere(tmp_path / name, hidden)) for name in "abc"]
        for (process, url), name in zip(found, "abc", strict=True):
            wait_for(process, url, tmp_path / name / "log")
        on_two_ranks(tmp_path, [url for _, url in found], found[1][0].pid, ALIGN_VLLM_PUSH_FOLDER=str(hidden))
