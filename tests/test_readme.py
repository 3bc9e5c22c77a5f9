"""What README tells a reader to type works: its commands in miniature, and its Python (`test_docs.py` has the rest)."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from align import cli
from tests.align.trainers import ppo_case
from tests.commands import ROOT, accelerate
from tests.documents import blocks, commands
from tests.recipes.miniature import OVERRIDES, write_data, write_model
from tests.tiny_models import byte_tokenizer

README, DATA = ROOT / "README.md", ROOT / "docs/data.md"
BLOCKS = blocks(README)
COMMANDS = commands(README)


def test_the_readme_has_the_commands_looked_for_here():
    assert {command[0] for command in COMMANDS} == {"make", "align", "accelerate"}


def test_the_ci_begins_with_the_first_commands_of_the_readme():
    """In the environment that they make themselves: what needs more is installed later."""
    ran = re.findall(r"^run (.*)$", (ROOT / ".ci/run").read_text(), re.M)
    first = [line.partition("#")[0].strip() for line in BLOCKS[0][1].splitlines()]
    assert ran[: len(first)] == first == ["make quickstart", "make test"]
    assert {"make install-full", "make test-slow"} <= set(ran[len(first) :])


def test_the_python_runs(tmp_path):
    (text,) = (text for language, text in BLOCKS if language == "python")
    names: dict = {}
    exec(text, names)
    trainer = ppo_case.trainer(tmp_path, kind=names["ShortAnswers"])
    rewards_NS = trainer.shape_rewards(torch.zeros(1), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool))
    assert rewards_NS.tolist() == [[pytest.approx(-0.01)] * 3]
    assert trainer.step()["optimizer_steps"] == 2


@pytest.mark.slow
def test_the_commands_for_a_real_model_in_miniature(tmp_path):
    """As typed, but that one of those that `accelerate launch` is typed for has processes of its own."""
    recipe, data, model = tmp_path / "my.yaml", write_data(tmp_path / "data"), write_model(tmp_path / "Qwen2-tiny")
    replaced = {"my.yaml": str(recipe), "data_root=/data": f"data_root={data}"}
    small = [f"model.path={model}", f"output_dir={tmp_path / 'run'}", *OVERRIDES]
    ran = []
    for command in COMMANDS:
        words = [replaced.get(word, word) for word in command]
        if str(recipe) not in words:
            continue
        own = [word for word in small if word.split("=")[0] not in " ".join(words)]
        if words[0] == "align":  # the report's sizes are copied, and made larger
            assert cli.main([*words[1:], *(own if words[1] in ("check", "plan") else [])]) == 0, words
        elif words[3] == "align/sft.py":
            done = accelerate(*words[2:], *own)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
        else:
            assert words[:3] == ["accelerate", "launch", "-q"]
            assert import_module(f"align.{Path(words[3]).stem}").main([*words[4:], *own]) == 0, words
        ran.append(command)
    assert len(ran) >= 6
    assert (tmp_path / "run/ppo/summary.json").is_file()


@pytest.mark.slow
def test_the_commands_about_data(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"messages": [{"role": "user", "content": f"question {at}"}, {"role": "assistant", "content": "yes"}]}
        for at in range(60)
    ]
    for name in ("talk.jsonl", "data/talk.jsonl", "more/talk.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "any.parquet")
    add = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "def add(a, b): return a + b"}]
    tested = {"messages": add, "tests": ["assert add(1, 2) == 3"]}
    (tmp_path / "code.jsonl").write_text(json.dumps(tested) + "\n")
    (tmp_path / "rules.yaml").write_text("exact_duplicates: {}\n")
    byte_tokenizer().save_pretrained(tmp_path / "M")
    found = [command for command in commands(DATA) if command[:2] == ["align", "data"]]
    assert {command[2] for command in found} == {"stats", "inspect", "convert", "split", "verify"}
    monkeypatch.chdir(tmp_path)
    for command in found:
        assert cli.main(command[1:]) == 0, command
    sides = [len((tmp_path / f"sides/{name}.jsonl").read_text().splitlines()) for name in ("train", "heldout")]
    assert sum(sides) == 60 and all(sides)
