"""`align score`: the same scores as everybody else's, whatever holds the replies, and never lost or made twice."""

import json
import os
import signal
from argparse import Namespace

import pytest
import torch

from align import cli
from align.commands import score
from align.data.encode import encode_prompts, encode_replies
from align.evaluation import scoring
from align.recipe import dump_recipe
from align.trainers.ppo.types import Samples
from data_formats import Prompt, write_jsonl
from reward.combined import CombinedReward, Part
from reward.sources import FunctionReward, load_reward
from tests.align.commands.test_evaluate_reward import PAIRS, save_reward
from tests.align.stages.test_ppo import recipe
from tests.align.trainers import ppo_case
from tests.commands import ROOT
from tests.documents import DOCS, commands
from tests.ranks import PROCESSES
from tests.tiny_models import byte_tokenizer

BY_LENGTH = "def by_length(prompts, completions):\n    return [float(len(text)) for text in completions]\n"


@pytest.fixture
def asked(capsys, monkeypatch):
    monkeypatch.delenv("ALIGN_DEBUG", raising=False)

    def ask(*words, command="score", code=0):
        capsys.readouterr()
        assert cli.main([command, *map(str, words)]) == code
        return capsys.readouterr()

    return ask


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def of_the_trainer(folder, reward, pairs):
    """The scores that `PPOTrainer` gives both sides of the pairs, as if it had sampled them."""
    names = byte_tokenizer()
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    prompts = tuple(Prompt(pair.prompt) for pair in pairs for _ in range(2))
    samples = Samples(
        prompts=prompts,
        prompt_ids=tuple(map(tuple, encode_prompts(names, [prompt.messages for prompt in prompts]))),
        reply_ids=tuple(map(tuple, encode_replies(names, texts))),
        replies=tuple(texts),
        finished=(True,) * len(texts),
    )
    return ppo_case.trainer(folder / "ppo", reward=reward).score(samples)


def test_the_scores_are_the_trainers_and_evaluate_rewards_to_the_last_bit(tmp_path, asked):
    folder, pairs = save_reward(tmp_path), tmp_path / "pairs.jsonl"
    write_jsonl(pairs, PAIRS)
    shown = asked(folder, pairs, "--out", tmp_path / "scored.jsonl").out
    asked(folder, pairs, "--out", tmp_path / "evaluated", command="evaluate-reward")
    rows = rows_of(tmp_path / "scored.jsonl")
    evaluated = rows_of(tmp_path / "evaluated/eval.jsonl")
    scores = [row["score"] for row in rows]
    assert scores == [row[f"{side}_score"] for row in evaluated for side in ("chosen", "rejected")]
    assert scores == of_the_trainer(tmp_path, load_reward(folder), PAIRS).total_N.tolist()
    assert len(set(scores)) > 12  # they say something
    assert [(row["row"], row["index"]) for row in rows[:4]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert rows[3] == {
        **{"file": str(pairs), "row": 2, "index": 1, "prompt": [{"role": "user", "content": "q1 好"}]},
        **{"reply": "bbb", "score": scores[3]},
    }
    assert "24 replies scored" in shown and shown.count("█") >= 24 and "mean" in shown
    # what was written is read again: as replies to be scored, by the same name
    asked(folder, tmp_path / "scored.jsonl", "--out", tmp_path / "again.jsonl")
    assert [row["reply"] for row in rows_of(tmp_path / "again.jsonl")] == [row["reply"] for row in rows]


def test_after_a_failure_the_same_command_goes_on_and_writes_the_same_bytes(tmp_path, asked, monkeypatch):
    monkeypatch.setattr(scoring, "AT_ONCE", 5)
    data = write_rows(
        tmp_path / "d.jsonl", [{"prompt": f"q{at}", "completion": "a" * (at + 1), "n": at} for at in range(12)]
    )
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nhere = Path(__file__).parent\n"
        "def mine(prompts, completions, n):\n"
        "    if 7 in n and not (here / 'well').exists():\n        raise KeyboardInterrupt\n"
        "    with open(here / 'asked', 'a') as file:\n        file.write(''.join(f'{one} ' for one in n))\n"
        "    return [len(text) / 3 for text in completions]\n"
    )
    reward, out = f"{tmp_path}/mine.py:mine", tmp_path / "scored.jsonl"
    asked(reward, data, "--out", out, code=130)
    assert not out.exists() and (tmp_path / "asked").read_text() == "0 1 2 3 4 "
    (tmp_path / "well").touch()
    told = asked(reward, data, "--limit", 11, "--out", out, code=1).err
    assert "holds what another command made (other: limit)" in told
    asked(reward, data, "--out", out)
    assert (tmp_path / "asked").read_text() == "".join(f"{at} " for at in range(12))
    assert not (tmp_path / "scored.jsonl.pieces").exists()
    asked(reward, data, "--out", tmp_path / "at_once.jsonl")
    assert out.read_bytes() == (tmp_path / "at_once.jsonl").read_bytes()
    assert [row["score"] for row in rows_of(out)] == [(at + 1) / 3 for at in range(12)]
    assert "exists already" in asked(reward, data, "--out", out, code=1).err


def test_a_reward_that_is_no_path_does_not_change_with_the_folder_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = Namespace(reward="org/name", format="auto", limit=None, batch_size=1, on_reward_error=None, dtype="auto")
    args.max_row_mb = 64
    before = score._settings(args, [])
    (tmp_path / "nohup.out").write_text("of another program")
    assert score._settings(args, []) == before and before["the reward's files"] == []


def test_a_recipes_weighted_list_with_its_parts_and_its_own_policy_for_failures(tmp_path, asked):
    (tmp_path / "mine.py").write_text(
        BY_LENGTH + "def brittle(prompts, completions, reference):\n"
        "    if 'ab' in completions:\n        raise ValueError('no')\n"
        "    return [float(text == wanted) for text, wanted in zip(completions, reference)]\n"
    )
    parts = [
        {"kind": "function", "function": f"{tmp_path}/mine.py:by_length", "name": "long", "weight": 0.5},
        {"kind": "function", "function": f"{tmp_path}/mine.py:brittle", "name": "right", "weight": 2.0},
        {"kind": "exact_match", "weight": -1.0, "missing": 0.0},
    ]
    made = recipe(tmp_path, reward_from=None, reward=parts, on_reward_error="mask")
    (tmp_path / "r.yaml").write_text(dump_recipe(made))
    texts = ["a", "ab", "abc", "abcd"]
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "q", "completion": text, "reference": "abc"} for text in texts])
    shown = asked(f"{tmp_path}/r.yaml:ppo.reward", data, "--out", tmp_path / "s.jsonl").out
    rows = rows_of(tmp_path / "s.jsonl")
    assert [row["score"] for row in rows] == [0.5, None, 2.5, 2.0]
    assert rows[2]["parts"] == {"long": 3.0, "right": 1.0, "exact_match": 1.0}
    assert rows[1]["parts"] == {"long": None, "right": None, "exact_match": None} and "no" in rows[1]["error"]
    assert "3 replies scored" in shown and "1 more that it failed on" in shown
    found = asked(tmp_path / "r.yaml", data, "--out", tmp_path / "t.jsonl", "--on-reward-error", "stop", code=1).err
    assert "'right' failed: ValueError: no" in found and "row 1 of" in found


def test_a_composed_reward_of_the_trainer_scores_alike(tmp_path, asked):
    """A model in a weighted list reads the policy's ids, there and here."""
    folder, pairs = save_reward(tmp_path / "own"), tmp_path / "pairs.jsonl"
    write_jsonl(pairs, PAIRS)
    (tmp_path / "mine.py").write_text(BY_LENGTH)
    model = {"kind": "model", "model_from": str(folder), "weight": 1.0, "batch_size": 5}
    parts = [model, {"kind": "function", "function": f"{tmp_path}/mine.py:by_length", "weight": -0.25}]
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe(tmp_path, reward_from=None, reward=parts)))
    asked(tmp_path / "r.yaml", pairs, "--out", tmp_path / "s.jsonl")

    def by_length(prompts, completions):
        return [float(len(text)) for text in completions]

    inner = load_reward(folder, batch_size=5, name="model", dtype=torch.float32, attn_implementation="sdpa")
    whole = CombinedReward([Part(inner), Part(FunctionReward(by_length), -0.25)])
    expected = of_the_trainer(tmp_path, whole, PAIRS).total_N.tolist()
    assert [row["score"] for row in rows_of(tmp_path / "s.jsonl")] == expected


def test_every_file_that_holds_replies(tmp_path, asked):
    (tmp_path / "mine.py").write_text(BY_LENGTH)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "four"}]
    held = {
        "messages": ({"messages": [*turns, turns[0], {"role": "assistant", "content": "five5"}]}, [5]),
        "pairs": ({"prompt": "q", "chosen": "abc", "rejected": "a"}, [3, 1]),
        "ranked": (
            {"prompt": "q", "replies": [{"content": "aa", "score": 1}, {"content": "a", "score": None}]},
            [2, 1],
        ),
        "sampled": ({"prompt": "q", "reply": "abcd", "score": 0.5, "kl": 1.0, "category": "c"}, [4]),
        "judged": (
            {
                "prompt": "q",
                "sft_reply": "a",
                "sft_reward": 1.0,
                "ppo_reply": "ab",
                "sampled": {"sft": [{"reply": "abc"}]},
            },
            [1, 2, 3],
        ),
        "completions": ({"prompt": "q", "completions": ["a", "abc"]}, [1, 3]),
        "thought": (
            {"messages": [turns[0], turns[1] | {"reasoning_content": "hm"}]},
            [len("<think>\nhm\n</think>\n\nfour")],
        ),
    }
    files = [write_rows(tmp_path / f"{name}.jsonl", [row] * 2) for name, (row, _) in held.items()]
    shown = json.loads(
        asked(f"{tmp_path}/mine.py:by_length", *files, "--out", tmp_path / "s.jsonl", "--limit", 99, "--json").out
    )
    rows = rows_of(tmp_path / "s.jsonl")
    for file, (_, scores) in zip(files, held.values(), strict=True):
        assert [row["score"] for row in rows if row["file"] == str(file)] == scores * 2, file
    assert shown["count"] == len(rows) == sum(2 * len(scores) for _, scores in held.values())
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "q"}])
    told = asked(f"{tmp_path}/mine.py:by_length", tmp_path / "prompts.jsonl", "--out", tmp_path / "t.jsonl", code=1)
    assert "without replies to be scored" in told.err


def test_a_run_is_its_reward_stage_and_what_is_none_is_one_sentence(tmp_path, asked):
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "a"}])
    folder = save_reward(tmp_path)
    run = tmp_path / "run/rm"
    run.mkdir(parents=True)
    (run / "recipe.yaml").touch()
    told = asked(tmp_path / "run", data, "--out", tmp_path / "s.jsonl", code=1).err
    assert "a run without a finished reward model (pmp or rm)" in told
    folder.rename(run / "model")
    (run / "summary.json").write_text("{}")
    scores = []
    for at, word in enumerate((tmp_path / "run", run, run / "model")):
        asked(word, data, "--out", tmp_path / f"{at}.jsonl")
        scores += [row["score"] for row in rows_of(tmp_path / f"{at}.jsonl")]
    assert len(scores) == 3 and len(set(scores)) == 1
    for word, said in (("x.py:name", "no such file"), ("none.yaml", "no such recipe"), ("./none", "does not exist")):
        assert said in asked(word, data, "--out", tmp_path / "t.jsonl", code=1).err


def test_the_commands_of_the_manual_and_of_readme(tmp_path, asked, monkeypatch):
    """Each `align score` of it, in a folder with a run, a recipe, a function and files of those names."""
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(tmp_path)))
    (tmp_path / "my_rewards.py").write_text(BY_LENGTH.replace("by_length", "brief"))
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    write_rows(tmp_path / "replies.jsonl", [{"prompt": "q", "completion": "a"}])
    write_rows(tmp_path / "samples.jsonl", [{"prompt": "q", "reply": "a"}])
    run = tmp_path / "runs/quickstart/rm"
    run.mkdir(parents=True)
    (run / "recipe.yaml").touch()
    (run / "summary.json").write_text("{}")
    save_reward(tmp_path / "own").rename(run / "model")
    (tmp_path / "runs/mine").symlink_to(tmp_path / "runs/quickstart")
    monkeypatch.chdir(tmp_path)
    pages = (DOCS / "rewards.md", ROOT / "README.md")
    ran = [words for page in pages for words in commands(page) if words[:2] == ["align", "score"]]
    for words in ran:
        asked(*words[2:])
        assert all(row["score"] is not None for row in rows_of(tmp_path / "scored.jsonl"))
        (tmp_path / "scored.jsonl").unlink()
    assert len(ran) == 4


def in_process(*words) -> None:
    """`align WORDS` in a process that has imported everything already."""
    os._exit(cli.main([str(word) for word in words]))


@pytest.mark.slow
def test_a_killed_program_loses_nothing_and_scores_nothing_twice(tmp_path, asked):
    data = write_rows(
        tmp_path / "d.jsonl", [{"prompt": f"q{at}", "completion": "a" * (at % 7), "n": at} for at in range(3000)]
    )
    (tmp_path / "mine.py").write_text(
        "import os, signal\nfrom pathlib import Path\nhere = Path(__file__).parent\n"
        "def mine(prompts, completions, n):\n"
        "    if 1500 in n and not (here / 'well').exists():\n"
        "        (here / 'well').touch()\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    with open(here / 'asked', 'a') as file:\n        file.write(''.join(f'{one} ' for one in n))\n"
        "    return [len(text) / 3 for text in completions]\n"
    )
    words, out = (f"{tmp_path}/mine.py:mine", data, "--out"), tmp_path / "scored.jsonl"
    process = PROCESSES.Process(target=in_process, args=("score", *words, out))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    first = (tmp_path / "asked").read_text().split()
    assert len(first) > 500 and not out.exists()
    asked(*words, out)
    known = [str(row["n"]) for row in rows_of(data) if row["completion"]]  # empty replies are dropped
    assert (tmp_path / "asked").read_text().split() == known
    asked(*words, tmp_path / "at_once.jsonl")
    assert out.read_bytes() == (tmp_path / "at_once.jsonl").read_bytes()
