"""Rewards that break in the middle of a PPO run: one clear error, the state saved, and the same command goes on.

Functions in a file and an endpoint on loopback, each as a recipe names it; a run that continues ends with the figures
of one that was never disturbed.
"""

import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from align import cli
from align.ppo import main
from align.recipe.load import dump_recipe
from tests.align.stages.test_ppo import recipe

GOOD = "[float(len(text)) for text in completions]"
TIMES = ("time", "seconds", "memory", "tokens_per_second")
BREAKS = {
    "length": ("return [1.0]", "gave 1 scores for 8 replies"),
    "none": ("return None", "it gave None"),
    "texts": ("return [str(len(text)) for text in completions]", "must give one float a reply, it gave ["),
    "a text": ("return '1' * len(completions)", "it gave '11111111'"),
    "nan": ("return [1.0] * (len(completions) - 1) + [float('nan')]", "gave nan for reply 7 (1 of 8 not finite)"),
    "raises": ("raise KeyError('reference')", "failed: KeyError: 'reference'"),
    "exits": ("raise SystemExit(0)", "failed: SystemExit: 0"),
    "generator": ("return (1 / 0 for _ in completions)", "failed: ZeroDivisionError: division by zero"),
}


FEW = (slice(0, None, 4), pytest.param(slice(None), marks=pytest.mark.slow))  # each a run that goes on


def function(body, after):
    """A reward file that does `body` from call number `after` + 1 on."""
    return (
        "calls = 0\ndef score(prompts, completions):\n    global calls\n    calls += 1\n"
        f"    if calls > {after}:\n        {body}\n    return {GOOD}\n"
    )


def write(folder, part, **changes):
    made = recipe(folder, reward_from=None, reward=[part], normalize_reward="running_mean", **changes)
    (folder / "recipe.yaml").write_text(dump_recipe(made), encoding="utf-8")
    return str(folder / "recipe.yaml")


def error_of(done, capsys):
    shown = capsys.readouterr().err
    assert done == 1 and "Traceback" not in shown
    (error,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    return error


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "run/ppo/metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not any(part in key for part in TIMES)} for line in lines]


@pytest.fixture(autouse=True)
def plain_errors(monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "mine.py").write_text(function("pass", 0))
    assert main([write(folder, {"kind": "function", "function": f"{folder}/mine.py:score"})]) == 0
    return metrics(folder)


@pytest.mark.parametrize("ways", FEW)
def test_a_function_that_breaks_in_every_way_and_is_mended(undisturbed, tmp_path, capsys, ways):
    words_typed = [write(tmp_path, {"kind": "function", "function": f"{tmp_path}/mine.py:score"})]
    calls = 3  # two look at held-out prompts, one trains; of a run that goes on the first trains
    for body, words in list(BREAKS.values())[ways]:
        (tmp_path / "mine.py").write_text(function(body, calls))
        error = error_of(main(words_typed), capsys)
        assert error.startswith("error: reward 'function' ") and words in error
        saved = tmp_path / "run/ppo/checkpoints/step-1"
        assert error.endswith(f"(iteration 2); the state before it is saved in {saved}") and saved.is_dir()
        assert not (tmp_path / "run/ppo/summary.json").exists()
        calls = 0
    (tmp_path / "mine.py").write_text(function("pass", 0))
    assert main(words_typed) == 0
    assert json.loads((tmp_path / "run/ppo/summary.json").read_text())["resumed_from"] == 1
    assert metrics(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "after"), [(0, 0), (5, 3)])
def test_a_function_that_breaks_while_held_out_prompts_are_judged(calls, after, undisturbed, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(function("return [0.0]", calls))
    words_typed = [write(tmp_path, {"kind": "function", "function": f"{tmp_path}/mine.py:score"})]
    error = error_of(main(words_typed), capsys)
    assert error.startswith("error: reward 'function' gave 1 scores for ")
    saved = f"; the state is saved in {tmp_path}/run/ppo/checkpoints/step-{after}" if after else ""
    assert error.endswith(f"(evaluation after iteration {after}){saved}")
    (tmp_path / "mine.py").write_text(function("pass", 0))
    assert main(words_typed) == 0
    assert json.loads((tmp_path / "run/ppo/summary.json").read_text())["resumed_from"] == after
    assert metrics(tmp_path) == undisturbed


@pytest.mark.slow
def test_looks_in_between_are_made_up_for(tmp_path, capsys):
    found = []
    for calls in (99, 3, 4, 6):  # never; the look after iteration 1, iteration 2, the look after iteration 2
        folder = tmp_path / str(calls)
        folder.mkdir()
        (folder / "mine.py").write_text(function("return None", calls))
        part = {"kind": "function", "function": f"{folder}/mine.py:score"}
        words_typed = [write(folder, part, evaluation={"every_steps": 1}, save_steps=1)]
        if calls < 99:
            assert "/run/ppo/checkpoints/step-" in error_of(main(words_typed), capsys)
            (folder / "mine.py").write_text(function("pass", 0))
        assert main(words_typed) == 0
        found.append(metrics(folder))
    assert found[1:] == [found[0]] * 3


STICKY = """
import json, os
FILE, calls = {file!r}, 0
def score(prompts, completions):
    global calls
    calls += 1
    if calls == 4 and not os.path.exists(FILE):  # of iteration 2
        rare = max((text for text in completions if completions.count(text) == 1), key=len)
        open(FILE, "w").write(json.dumps(rare))
    if os.path.exists(FILE) and json.load(open(FILE)) in completions:
        raise ValueError("no verdict on this one")
    return {good}
"""


@pytest.mark.slow
def test_a_reply_that_the_reward_always_fails_on_is_left_out_once_that_is_allowed(tmp_path, capsys, caplog):
    (tmp_path / "mine.py").write_text(STICKY.format(file=str(tmp_path / "bad.json"), good=GOOD))
    words_typed = [write(tmp_path, {"kind": "function", "function": f"{tmp_path}/mine.py:score"})]
    error = error_of(main(words_typed), capsys)
    assert error.startswith("error: reward 'function' failed: ValueError: no verdict on this one (iteration 2); the")
    assert "call 1 of 3" not in caplog.text  # and resuming samples the same reply:
    assert "no verdict" in error_of(main([*words_typed, "ppo.on_reward_error=retry"]), capsys)
    assert main([*words_typed, "ppo.on_reward_error=mask"]) == 0
    failed = [line["reward/failed"] for line in metrics(tmp_path) if "reward/failed" in line]
    assert failed == [1.0, 0.0] and json.loads((tmp_path / "run/ppo/summary.json").read_text())["resumed_from"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json"])  # in training; at its end
def test_the_chain_says_so_on_the_command_line(file, undisturbed, tmp_path, capsys):
    body = f"if __import__('os').path.exists('{tmp_path}/run/ppo/{file}'): return None"
    (tmp_path / "mine.py").write_text(function(body, 0))
    words_typed = ["run", write(tmp_path, {"kind": "function", "function": f"{tmp_path}/mine.py:score"})]
    error = error_of(cli.main(words_typed), capsys)
    name = "function" if file == "metrics.jsonl" else "reward"  # what the outcome calls what the policy was trained on
    assert error.startswith(f"error: reward '{name}' must give one float a reply, it gave None")
    (tmp_path / "mine.py").write_text(function("pass", 0))
    assert cli.main(words_typed) == 0
    assert metrics(tmp_path) == undisturbed


class Endpoint(BaseHTTPRequestHandler):
    """Good answers, and from request number `server.good` + 1 on what `server.bad` does."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen += 1
        if self.server.seen > self.server.good:
            return self.server.bad(self)
        self.give(200, json.dumps({"scores": [float(len(each["completion"])) for each in body["inputs"]]}))

    def give(self, status, text, announced=None, **headers):
        data = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(announced or len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def served():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.daemon_threads, server.seen, server.good, server.bad = True, 0, 10**6, None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def scores(*values):
    return lambda handler: handler.give(200, json.dumps({"scores": list(values)}))


TOKEN = "sec-ret-token"
FAILS = {
    "hangs": (lambda handler: time.sleep(2), r"gave no answer in 0\.5 s \(attempt 3 of 3\)", 3),
    "no json": (lambda handler: handler.give(200, "<html>"), r"must answer with .*it gave \'<html>\'", 1),
    "length": (scores(1.0), "gave 1 scores for 8 replies", 1),
    "nan": (scores(*[float("nan")] * 8), r"gave nan for reply 0 \(8 of 8 not finite\)", 1),
    "too large": (scores(*[10**400] * 8), "must give one float a reply", 1),
    "deep": (lambda handler: handler.give(200, "[" * 100_000), "must answer with", 1),
    "status 500": (lambda handler: handler.give(500, "oh"), r"status 500 .*'oh' \(attempt 3 of 3\)", 3),
    "echoes": (lambda handler: handler.give(400, handler.path), r"status 400 .*'/score\?token=", 1),
    "redirects": (lambda handler: handler.give(302, "", Location="/there"), "status 302 .*not tried again", 1),
    "breaks off": (
        lambda handler: handler.give(200, '{"scores": [1.0', announced=999),
        r"broke off in the middle of its answer, 984 bytes before its end \(attempt 3 of 3\)",
        3,
    ),
}


@pytest.mark.slow
def test_an_endpoint_that_fails_in_every_way_and_comes_back(undisturbed, tmp_path, capsys):
    with served() as server:
        plain = f"http://127.0.0.1:{server.server_address[1]}/score"
        url = f"{plain}?token={TOKEN}"
        part = {"kind": "http", "url": plain, "name": "remote", "timeout": 0.5, "attempts": 3, "backoff": 0.01}
        words_typed = [write(tmp_path, part), f"ppo.reward.0.url={url}"]
        server.good = 3
        for bad, words, requests in FAILS.values():
            server.bad = bad
            error = error_of(main(words_typed), capsys)
            assert TOKEN not in error
            assert error.startswith("error: reward 'remote'") and re.search(words, error), error
            saved = tmp_path / "run/ppo/checkpoints/step-1"
            assert error.endswith(f"(iteration 2); the state before it is saved in {saved}") and saved.is_dir()
            assert server.seen == server.good + requests
            server.good = server.seen
        server.good = 10**6
        assert main([*words_typed[:1], f"ppo.reward.0.url={url}x"]) == 0  # a new token is no other run
    assert metrics(tmp_path) == undisturbed
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 5 and [path for path in written if TOKEN.encode() in path.read_bytes()] == []
