"""`align chat` in a real terminal (tmux), typed into and looked at."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.align.chat.run_folder import write_run
from tests.commands import INSTALLED, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux, a terminal")]
SIZE = ("-x", "100", "-y", "50")


class Terminal:
    """One tmux session with a server of its own."""

    def __init__(self, folder):
        self.folder, self.socket = folder, str(folder / "tmux")
        environment = {name: value for name, value in INSTALLED.items() if name not in ("TMUX", "TMUX_PANE")}
        self.environment = environment | {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
        self.tmux("new-session", "-d", *SIZE, "-c", str(folder), "sh")

    def tmux(self, *words):
        command = ["tmux", "-S", self.socket, "-f", "/dev/null", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, text):
        self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", "Enter")

    def screen(self):
        return self.tmux("capture-pane", "-p", "-S", "-200")

    def until(self, seen, seconds=240):
        """The screen once `seen(screen)` is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            shown = self.screen()
            if seen(shown):
                return shown
            time.sleep(0.1)
        raise AssertionError(self.screen())

    def waiting(self, count):
        """The screen once so many prompts were shown, the last one at its end."""
        return self.until(
            lambda shown: (
                sum(line.startswith(">") for line in shown.splitlines()) >= count
                and shown.rstrip().splitlines()[-1] == ">"
            )
        )

    def left(self):
        """The program has ended well: the shell is back."""
        self.until(lambda shown: shown.rstrip().splitlines()[-1].startswith(("$", "#")))
        self.type("echo left with $?")
        self.until(lambda shown: "\nleft with 0" in shown)


@pytest.fixture
def terminal(tmp_path):
    opened = Terminal(tmp_path)
    yield opened
    opened.tmux("kill-server")


def test_two_models_side_by_side_and_ctrl_c_stops_a_reply_and_not_the_program(terminal, tmp_path):
    write_run(tmp_path / "tiny")
    words = f"{sys.executable} -m align.cli chat tiny --against sft --max-tokens 60 --seed 5"
    terminal.type(words)
    shown = terminal.waiting(1)
    assert "tiny/ppo beside tiny/sft, judged by tiny/rm; /help lists the commands" in shown

    terminal.type("hello there")
    shown = terminal.waiting(2)
    lines = shown.splitlines()
    head = next(line for line in lines if "tiny/ppo" in line and "tiny/sft" in line and "beside" not in line)
    assert head.index("tiny/sft") > 40
    (rewards,) = [line for line in lines if line.count("reward ") == 2]
    assert rewards.index("reward", 10) == head.index("tiny/sft")
    keep(terminal, "side-by-side")

    terminal.type("/retry")
    assert sum(line.count("reward ") for line in terminal.waiting(3).splitlines()) == 4
    terminal.type("/undo")
    assert "taken back: hello there" in terminal.waiting(4)
    terminal.type("and now?")
    terminal.waiting(5)
    terminal.tmux("send-keys", "Up")  # the history
    assert terminal.until(lambda shown: shown.rstrip().endswith("> and now?"))
    terminal.tmux("send-keys", "Enter")
    terminal.waiting(6)
    terminal.type("/save talk.jsonl")
    assert "written to talk.jsonl" in terminal.waiting(7)
    rows = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["tiny/ppo", "tiny/sft"]
    assert [turn["content"] for turn in rows[0]["messages"][::2]] == ["and now?"] * 2 and len(rows[0]["rewards"]) == 2
    terminal.type("/nothing")
    assert "error: there is no command /nothing" in terminal.waiting(8)
    keep(terminal, "commands")

    terminal.type("/temperature 3")
    terminal.waiting(9)
    for _ in range(20):  # a reply may have ended before
        terminal.type("hello")
        time.sleep(0.15)
        terminal.tmux("send-keys", "C-c")
        shown = terminal.until(lambda shown: shown.rstrip().splitlines()[-1] == ">")
        if "[stopped]" in shown:
            break
    assert "[stopped]" in shown
    keep(terminal, "stopped")
    terminal.type("/undo")
    assert "taken back: hello" in terminal.until(lambda shown: "taken back" in shown)
    terminal.tmux("send-keys", "C-d")
    terminal.left()


def keep(terminal, name):
    """Leave the screen where somebody wants to look at it: ALIGN_SCREENS=FOLDER."""
    if folder := os.environ.get("ALIGN_SCREENS"):
        (ROOT / folder / f"{name}.txt").write_text(terminal.screen())
