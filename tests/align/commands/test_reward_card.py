"""`align reward-card`: from files to a card, with a real reward model and with functions, stopped and gone on with."""

import json

import pytest

from align import cli
from align.evaluation import scoring as asking
from align.evaluation.reward_card import scoring
from tests.align.commands.test_evaluate_reward import save_reward
from tests.align.evaluation.benchmark_rows import HH, JUDGEBENCH, RM_BENCH, write, write_all

MINE = (
    "from pathlib import Path\nhere = Path(__file__).parent\n"
    "def by_length(prompts, completions):\n    return [float(len(text)) for text in completions]\n"
    "def brittle(prompts, completions):\n"
    "    if any('B' == text for text in completions) and not (here / 'well').exists():\n"
    "        return [float('nan') if text == 'B' else 0.0 for text in completions]\n"
    "    with open(here / 'asked', 'a') as file:\n        file.write(f'{len(completions)} ')\n"
    "    return [float(len(text)) for text in completions]\n"
)


@pytest.fixture
def asked(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)
    (tmp_path / "mine.py").write_text(MINE)

    def ask(*words, command="reward-card", code=0):
        capsys.readouterr()
        assert cli.main([command, *map(str, words)]) == code
        return capsys.readouterr()

    return ask


def test_every_benchmark_of_a_folder_by_a_reward_that_is_length(tmp_path, asked):
    data, out = write_all(tmp_path / "data"), tmp_path / "out"
    shown = asked(f"{tmp_path}/mine.py:by_length", "--data", data, "--out", out).out
    card = json.loads((out / "card.json").read_text())
    assert len(card["benchmarks"]) == 11 and " replies on c" in card["made"] and "torch" in card["made"]
    for one in card["benchmarks"].values():
        assert one["overall"]["score"] == one["overall"]["longer"] and one["name"] in shown
    assert "README.md: passed over, no file of rows" in shown and "RM-Bench by style" in shown
    assert "RewardBench 2" in (out / "index.html").read_text() and "| RM-Bench |" in (out / "card.md").read_text()
    again = json.loads(asked(f"{tmp_path}/mine.py:by_length", "--data", data, "--out", out, "--json").out)
    assert again == card  # from the scores that are kept
    told = asked(f"{tmp_path}/mine.py:by_length", "--data", data, "--out", out, "--limit", 1, code=1).err
    assert f"{out / 'scores.pieces'} holds what another command made (other: limit)" in told


def test_a_score_that_is_none_is_found_and_the_same_command_goes_on(tmp_path, asked, monkeypatch):
    for module in (asking, scoring):
        monkeypatch.setattr(module, "AT_ONCE", 6)
    data = tmp_path / "data"
    write(data / "a.json", RM_BENCH[:1])
    write(data / "b.jsonl", JUDGEBENCH)
    command = (f"{tmp_path}/mine.py:brittle", "--data", data, "--out", tmp_path / "out")
    told = asked(*command, code=1).err
    assert "error: b.jsonl, row 1, reply 2: reward 'brittle' gave nan" in told.replace("\n", " ")
    assert (tmp_path / "asked").read_text().split()[0] == "6" and not (tmp_path / "out/card.json").exists()
    (tmp_path / "well").touch()
    (tmp_path / "asked").unlink()
    asked(*command)
    assert (tmp_path / "asked").read_text() == "6 "  # JudgeBench's six replies; those of RM-Bench are kept
    asked(f"{tmp_path}/mine.py:by_length", "--data", data, "--out", tmp_path / "at_once")
    cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("out", "at_once")]
    assert cards[0]["benchmarks"] == cards[1]["benchmarks"]


def test_a_models_figure_is_evaluate_rewards_and_its_card_gets_the_table(tmp_path, asked):
    rows = [{side: text.replace("Bye", f"Bye {at}") for side, text in HH[0].items()} for at in range(6)]
    rows += [{"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:2]]
    file = write(tmp_path / "data/helpful-base/test.jsonl", rows)
    model = save_reward(tmp_path)
    (model / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n")
    command = (model, "--data", tmp_path / "data", "--out", tmp_path / "out", "--write")
    card = json.loads(asked(*command, "--json").out)
    evaluated = json.loads(asked(model, file, "--json", command="evaluate-reward").out)
    own = card["benchmarks"]["hh"]
    assert own["overall"]["score"] == evaluated["accuracy"] and own["overall"]["n"] == 8
    assert (own["overall"]["low"], own["overall"]["high"]) == (evaluated["accuracy_low"], evaluated["accuracy_high"])
    assert own["calibration_error"] == evaluated["calibration_error"] and own["parts"]["part"].keys() == {"helpful"}
    once = (model / "README.md").read_text()
    assert once.startswith("---\nlicense: mit\n---\n\n# Mine\n\n<!-- align reward-card -->\n") and "| HH | " in once
    shown = asked(*command).out  # from the scores that are kept: a README.md is no part of the reward
    assert (model / "README.md").read_text() == once
    assert "not in the folder: RewardBench 2, RewardBench 1," in shown.replace("\n", " ")


def test_what_cannot_be_is_one_sentence(tmp_path, asked):
    data, reward = write(tmp_path / "data/a.jsonl", JUDGEBENCH).parent, f"{tmp_path}/mine.py:by_length"
    for words, told in (
        ((reward, "--data", tmp_path / "none"), "no such folder; name the one that the benchmarks' files"),
        ((reward, "--data", data, "--write"), "is no model's folder, which has a README.md of its own"),
        ((reward, "--data", data, "--out", data / "a.jsonl"), "is a file; name a folder"),
        ((tmp_path / "mine.py", "--data", data), "error: "),
    ):
        shown = asked(*words, code=1)
        assert told in shown.err and "Traceback" not in shown.err
