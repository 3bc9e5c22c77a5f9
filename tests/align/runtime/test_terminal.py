"""What would steer a terminal is visible on it, whichever way it comes."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from align import cli
from align.report.build import build_report
from align.runs.launch import prepare
from align.runs.progress import StageProgress
from align.runtime.console import Console
from align.runtime.terminal import Parser, printable, say
from data_formats.errors import DataError
from tests.commands import exit_code

OSC_52 = "\x1b]52;c;cm0gLXJm\x07"  # would put text into the clipboard
HOSTILE = f"a\x1b[2Jb\x9b31mc{OSC_52}d\u202etxt\u2066\x7f\r\ud83d"
SHOWN = r"a\u001b[2Jb\u009b31mc\u001b]52;c;cm0gLXJm\u0007d\u202etxt\u2066\u007f\u000d\ud83d"
ROOT = Path(__file__).parents[3]


def steers(text):
    return [letter for letter in "\x1b\x07\x9b\x7f\r\u202e\u2066\ud83d" if letter in text]


def test_every_steering_character_becomes_an_escape_and_nothing_else_does():
    kept = "tab\tline\nüber 你好 🙂 é\u00ad‘’"
    assert printable(kept) == kept and printable(HOSTILE) == SHOWN and printable(SHOWN) == SHOWN
    unsafe = {chr(code) for code in range(0x110000) if printable(chr(code)) != chr(code)}
    controls = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))} - {"\n", "\t"}
    directions = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert unsafe == controls | directions | set(map(chr, range(0xD800, 0xE000)))


def test_escaped_json_still_means_what_it_meant():
    assert json.loads(printable(json.dumps({HOSTILE: [HOSTILE]}, ensure_ascii=False))) == {HOSTILE: [HOSTILE]}


def test_every_way_out_escapes(capsys, monkeypatch):
    for module, name in [(sys, "excepthook"), (threading, "excepthook"), (warnings, "formatwarning")]:
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    factory = logging.getLogRecordFactory()
    try:
        prepare()
        say(HOSTILE)
        Console(width=200).print(HOSTILE + "[red]no markup[/]")
        with pytest.raises(SystemExit):
            Parser().parse_args([HOSTILE])

        def fail():
            raise DataError("odd", path=HOSTILE, field=HOSTILE)

        assert exit_code(fail, proceed="x") == 1
        logging.getLogger("align.anything").warning("said %s", HOSTILE)
        handler = logging.StreamHandler(foreign := io.StringIO())
        logging.getLogger("foreign").addHandler(handler)
        logging.getLogger("foreign").warning(HOSTILE)
        with StageProgress("ppo", 1) as progress:
            progress.update(1, **{HOSTILE: 0.5})
        shown = warnings.formatwarning(HOSTILE, UserWarning, "f.py", 1)
        try:
            raise ValueError(HOSTILE)
        except ValueError as error:
            sys.excepthook(ValueError, error, None)
    finally:
        logging.setLogRecordFactory(factory)
    out, err = capsys.readouterr()
    without = SHOWN.replace(r"\u0007", "").replace(r"\u000d", "")  # rich drops the bell and the carriage return
    assert out == f"{SHOWN}\n{without}[red]no markup[/]\n"
    assert err.count(SHOWN) == 6 and f"error: {SHOWN}, field '{SHOWN}': odd" in err
    assert foreign.getvalue() == SHOWN + "\n" and SHOWN in shown
    assert steers(out + err + shown + foreign.getvalue()) == []


def test_tracebacks_of_any_origin_neither_steer_nor_tell_secrets(capsys, monkeypatch):
    """Uncaught, uncaught in a thread, logged by a library, warned of."""
    for module, name in [(sys, "excepthook"), (threading, "excepthook"), (warnings, "formatwarning")]:
        monkeypatch.setattr(module, name, getattr(module, name))
    factory, told = logging.getLogRecordFactory(), f"https://host/?token=geheim {HOSTILE}"

    def fail():
        raise ValueError(told)

    try:
        prepare()
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        try:
            fail()
        except ValueError as error:
            sys.excepthook(ValueError, error, error.__traceback__)
            handler = logging.StreamHandler(foreign := io.StringIO())
            logging.getLogger("foreign.trace").addHandler(handler)
            logging.getLogger("foreign.trace").exception(told)
        shown = warnings.formatwarning(told, UserWarning, "f.py", 1)
    finally:
        logging.setLogRecordFactory(factory)
    texts = [capsys.readouterr().err, foreign.getvalue(), shown]
    assert [text.count(f"?token=*** {SHOWN}") for text in texts] == [2, 2, 1]
    assert "geheim" not in "".join(texts) and steers("".join(texts)) == []


def test_out_of_memory_is_one_sentence(capsys, monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)

    def hoard():
        raise MemoryError("Unable to allocate 1. TiB")

    assert exit_code(hoard, proceed="x") == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("error: the program ran out of memory (Unable to allocate 1. TiB): give")
        and said.count("\n") == 1
    )


@pytest.fixture
def hostile(tmp_path):
    name = "a\x1b[31mb\u202e.jsonl"
    rows = [
        {"prompt": HOSTILE, "chosen": f"x{HOSTILE}", "rejected": "b", "category": HOSTILE, "source": HOSTILE},
        {"prompt": "q", "chosen": "[/no] [bold]markup", "rejected": HOSTILE, "tags": [HOSTILE]},
    ]
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "keys.jsonl").write_text(json.dumps({HOSTILE: 1}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [["stats", "."], ["stats", ".", "--json"], ["inspect", "a\x1b[31mb\u202e.jsonl"], ["inspect", "keys.jsonl"]],
)
def test_data_commands_on_hostile_files(hostile, capsys, monkeypatch, words):
    monkeypatch.chdir(hostile)
    cli.main(["data", *words])
    out, err = capsys.readouterr()
    assert steers(out + err) == [] and r"\u001b[2J" in out + err
    if "--json" in words:
        json.loads(out)


def test_a_terminal_gets_colours_but_no_code_of_the_data(hostile):
    """On a real terminal: rich's own codes pass, and only they."""
    leader, follower = pty.openpty()
    code = "import sys; from align import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "data", "inspect", "a\x1b[31mb\u202e.jsonl"]
    environment = os.environ | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "NO_COLOR": ""}
    done = subprocess.Popen(command, cwd=hostile, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    text = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        text += chunk
    os.close(leader)
    assert done.wait() == 0
    shown = text.decode()
    assert "\x1b[" in shown and "\x1b[2J" not in shown and "\x1b]52" not in shown
    assert steers(shown.replace("\x1b[", "").replace("\r\n", "")) == []
    assert "[/no] [bold]markup" in shown


def test_the_report_shows_turned_text_as_escapes(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "samples.jsonl").write_text(json.dumps({"step": 1, "prompt": HOSTILE, "reply": HOSTILE}) + "\n")
    (tmp_path / "summary.json").write_text(json.dumps({"name": f"run\u202e{OSC_52}", "sft": {}}))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert steers(page) == [] and r"run\u202e" in page
