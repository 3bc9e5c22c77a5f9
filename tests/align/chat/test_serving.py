"""`align serve`: the command that it shows, and, slowly, both servers asked over HTTP."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from align import cli
from align.chat.speaker import Speaker
from data_formats import Message
from rollouts.openai import ready
from rollouts.protocol import SamplingParams
from tests.align.chat.run_folder import write_adapter, write_run, write_without_turns
from tests.commands import INSTALLED

KEY = "0123456789abcdef-the-key"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(autouse=True)
def with_a_server(monkeypatch):
    """As where transformers' server is installed, and vLLM is not."""
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    monkeypatch.setattr("rollouts.openai.is_installed", lambda package: package != "vllm")
    monkeypatch.setattr("rollouts.openai.require_package", lambda who, package: None)


def test_the_command_is_shown_and_nothing_is_started(run, capsys):
    assert cli.main(["serve", str(run), "--print"]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown == (
        "export ALIGN_VLLM_API_KEY=$(openssl rand -hex 32)\n"
        f"python -m rollouts.openai --model {run}/ppo/model --name tiny/ppo "
        "--engine transformers --host 127.0.0.1 --port 8000 --api-key-env ALIGN_VLLM_API_KEY "
        "--stop-id 258 --stop-id 256"
    )
    assert cli.main(["serve", str(run / "sft"), "--print", "--engine", "vllm", "--key", "MINE", "--port", "81"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("python -m rollouts.openai") and "--port 81 --api-key-env MINE --stop-id" in shown
    assert "--engine vllm" in shown


def test_what_cannot_be_served_is_one_sentence(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, told in (
            ([run / "rm/model"], "is a reward model"),
            ([run, "--port", port], f"127.0.0.1:{port} cannot be listened on"),
            ([run, "--port", 70000], "127.0.0.1:70000 cannot be listened on"),
            ([run, "--port", free_port(), "--key", "NO_SUCH_KEY"], "variable NO_SUCH_KEY must hold the key"),
        ):
            assert cli.main(["serve", *map(str, words)]) == 1
            assert told in capsys.readouterr().err


def test_a_random_key_is_printed_once_and_is_in_no_argument(run, tmp_path, monkeypatch, capsys):
    ran = {}

    def become(program, words, environment):
        ran.update(words=words, environment=environment)

    monkeypatch.setattr(os, "execve", become)
    assert cli.main(["serve", str(run), "--port", str(free_port())]) == 0
    out = capsys.readouterr().out
    key = ran["environment"]["ALIGN_VLLM_API_KEY"]
    assert len(key) == 64 and out.count(key) == 1 and not any(key in word for word in ran["words"])
    assert "knows no turns" not in out
    assert cli.main(["serve", str(write_without_turns(tmp_path / "raw")), "--port", str(free_port())]) == 0
    assert "its folder knows no turns: ask http://127.0.0.1:" in capsys.readouterr().out


def test_the_folder_that_is_served_has_the_end_tokens(run, tmp_path):
    model = run / "sft/model"
    folder = ready(model, tmp_path, "a/b", [258, 256])
    assert folder == tmp_path / "a/b" and json.loads((folder / "generation_config.json").read_text()) == {
        **json.loads((model / "generation_config.json").read_text()),
        "eos_token_id": [258, 256],
        "do_sample": True,
    }
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()}
    assert (folder / "model.safetensors").resolve() == (model / "model.safetensors").resolve()


def free_port() -> int:
    """None of those that the kernel gives to whoever asks for any."""
    while True:
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", random.randrange(20_000, 32_000))) as free,
        ):
            return free.getsockname()[1]


def ask(port, path, body=None, key=KEY):
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"http://127.0.0.1:{port}{path}", data, headers), timeout=60) as answer:
        return json.loads(answer.read() or b"null")


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("transformers", marks=[pytest.mark.needs(name) for name in ("fastapi", "uvicorn", "openai")]),
        pytest.param("vllm", marks=pytest.mark.needs("vllm")),
    ],
)
def test_a_model_is_served_to_whoever_has_the_key(engine, run, tmp_path, capsys):
    """A run by vLLM, an adapter by transformers."""
    port, model, name = free_port(), run / "ppo/model", "tiny/ppo"
    if engine == "transformers":
        model, name = write_adapter(tmp_path / "lora", run / "sft/model"), "lora"
        assert cli.main(["serve", str(model), "--print"]) == 0
        assert f"align merge {model} lora-merged\n" in capsys.readouterr().out
    named = str(model if engine == "transformers" else run)
    command = [sys.executable, "-m", "align.cli", "serve", named, "--engine", engine, "--key", "MINE"]
    environment = INSTALLED | {"MINE": KEY, "TMPDIR": str(tmp_path)}
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=tmp_path
        )
    try:
        until_it_answers(port, server, log)
        for key in (None, "another-key-of-24-letters"):
            with pytest.raises(HTTPError) as refused:
                ask(port, "/health", key=key)
            assert refused.value.code == 401
        speaker, turns = Speaker(str(model), name), [Message("user", "hello"), Message("assistant", "so")]
        turns.append(Message("user", "and?"))
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 8}
        said = ask(port, "/v1/chat/completions", body)
        assert said["model"].startswith(name)
        params = SamplingParams(temperature=0, max_new_tokens=8, stop_token_ids=speaker.format.stop_ids)
        (completion,) = speaker.engine.generate(speaker.encode([turns]), params)
        assert said["usage"]["prompt_tokens"] == len(speaker.encode([turns])[0])
        same = 8 if engine == "transformers" else 3  # vLLM halves the precision of float32 weights
        text = speaker.text(completion.token_ids)
        assert said["choices"][0]["message"]["content"].strip()[:same] == text.strip()[:same]
        # Sampled, a reply of this model ends at one of its two end tokens sooner or later.
        body |= {"temperature": 2.0, "max_tokens": 400}
        ended = [ask(port, "/v1/chat/completions", body | {"seed": seed})["choices"][0] for seed in range(3)]
        assert {choice["finish_reason"] for choice in ended} >= {"stop"}
        assert len({choice["message"]["content"] for choice in ended}) > 1
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    assert KEY not in log.read_text()
    assert not list(tmp_path.glob("align-serve-*"))


def until_it_answers(port: int, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            ask(port, "/health")
            return
        except (URLError, ConnectionError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text())
