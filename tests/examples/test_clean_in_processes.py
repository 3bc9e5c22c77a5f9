"""`datasets` with two processes gives the rows and the counts of the command that reads the file at once."""

import json
import sys

import pytest

from align import cli
from tests.commands import INSTALLED, ROOT, run

RULES = """
replacement_characters: drop
emoji: {}
repetition: {}
decontamination: {against: [asked.jsonl]}
exact_duplicates: {}
near_duplicates: {}
"""


@pytest.mark.slow
@pytest.mark.needs("datasketch")
def test_two_processes_and_one(tmp_path, monkeypatch, capsys):
    asked = "What is the answer to the great question of life, the universe and everything?"
    said = ["yes", "no \ufffd", "😀😀😀😀", "a longer reply with some words of its own", "again and again " * 40]
    turns = [(f"question {at % 150}" if at % 9 else asked, said[at % 5]) for at in range(400)]
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "extra": 1}
        for q, a in turns
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": asked}) + "\n")
    (tmp_path / "rules.yaml").write_text(RULES)
    assert cli.main(["data", "convert", "talk.jsonl", "whole.jsonl", "--cleaning", "rules.yaml"]) == 0
    whole = capsys.readouterr().out.splitlines()
    command = (sys.executable, ROOT / "examples/clean_in_processes.py", "talk.jsonl", "parts.jsonl")
    done = run(*command, "--cleaning", "rules.yaml", cwd=tmp_path, env=INSTALLED)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    counts = [" ".join(line.split()) for line in whole if "near_" in line or "- " in line or "kept" in line]
    printed = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert len(counts) > 6 and [line for line in counts if line not in printed] == []
