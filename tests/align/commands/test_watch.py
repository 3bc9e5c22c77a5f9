"""`align watch`: one look in a pipe, and a run that grows, watched in a real terminal."""

import json
import shutil
import sys
import time

import pytest

from align import cli
from tests.align.chat.test_terminal import Terminal
from tests.align.report.synthetic_run import make_run, write

EVIL = "\x1b]0;title\x07\x1b[31m red \u202e[bold]知識[/bold] \ud800 " + "very long " * 30


@pytest.fixture
def once(capsys, monkeypatch):
    def look(folder, width=100):
        monkeypatch.setenv("COLUMNS", str(width))
        assert cli.main(["watch", str(folder), "--once"]) == 0
        return capsys.readouterr().out

    return look


def test_one_look(tmp_path, once):
    shown = once(make_run(tmp_path / "run", prompts=2, iterations=12, pairs=3))
    lines = shown.splitlines()
    assert lines[0] == "run: ppo, step 12" and lines[1] == "finished: base, sft, pmp, rm, ppo"
    assert lines[3].startswith("reward ") and "reward, held out" in lines[3] and lines[3].rstrip().endswith("1.6")
    assert "-0.5771" not in shown and "steps 0 to 12" in shown
    assert lines[-3:] == ["> 2 + 2?", "  It is 4.", "  step 12, score 1.2, kl 3"]
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [20, 40, 200])
def test_hostile_replies_stay_within_their_lines(tmp_path, once, width):
    root = make_run(tmp_path / "run", prompts=2, iterations=12, pairs=3)
    rows = [{"step": 1, "prompt": EVIL, "reply": EVIL, "score": 1.0}] * 5
    (root / "ppo/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"step": step, f"score/{EVIL}/mean": 0.5} for step in (1, 2)]
    (root / "ppo/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = once(root, width)
    assert not {"\x1b", "\x07", "\u202e", "\ud800"} & set(shown) and "[bold]" in once(root, 200)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width


def test_silence_is_told(tmp_path, once):
    rows = [{"step": step, "time": time.time() - 4000 + step, "loss": 1.0} for step in (1, 2, 3)]
    write(tmp_path / "run/sft/metrics.jsonl", rows)
    assert "nothing logged for 1:06:" in once(tmp_path / "run")
    write(tmp_path / "run/sft/summary.json", {"heldout_loss": 1.0})
    assert "nothing logged" not in once(tmp_path / "run")


def test_what_is_not_there_is_one_sentence(tmp_path, capsys):
    assert cli.main(["watch", str(tmp_path / "no"), "--once"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'no'}: no stage of a run has begun here")
    assert cli.main(["watch", str(tmp_path)]) == 1  # the output is no terminal
    with pytest.raises(SystemExit):
        cli.main(["watch", str(tmp_path), "--every", "0"])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux, a terminal")
def test_a_run_is_watched_from_before_its_start_to_its_end(tmp_path):
    opened = Terminal(tmp_path)
    try:
        opened.type(f"{sys.executable} -m align.cli watch run --every 0.2")
        opened.until(lambda shown: "run: no stage has begun yet; waiting" in shown)
        write(tmp_path / "run/sft/recipe.yaml", "name: x\nsft: {max_steps: 3}\n")
        write(tmp_path / "run/sft/metrics.jsonl", [{"step": 1, "time": time.time(), "loss": 2.5}])
        opened.until(lambda shown: "run: sft, step 1 of 3" in shown)
        with open(tmp_path / "run/sft/metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 2, "time": time.time(), "loss": 1.5}) + '\n{"step": 3, "lo')
        opened.until(lambda shown: "run: sft, step 2 of 3" in shown and "1.5 to 2.5, steps 1 to 2" in shown)
        write(tmp_path / "run/sft/samples.jsonl", [{"step": 3, "prompt": "Hi", "reply": "\x1b[2JHello"}])
        opened.until(lambda shown: "> Hi" in shown and r"Hello" in shown)
        write(tmp_path / "run/sft/summary.json", {"heldout_loss": 1.0})
        opened.left()
        opened.type("clear; " + f"{sys.executable} -m align.cli watch later")
        opened.until(lambda shown: "later: no stage has begun yet" in shown)
        opened.tmux("send-keys", "C-c")
        opened.left()
    finally:
        opened.tmux("kill-server")
