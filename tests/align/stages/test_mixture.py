"""Stages whose data is a mixture: what each step trained on, counted from its batches, against counts by hand."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from align.recipe import RecipeError
from align.recipe.fields import Source
from align.stages import run_sft, supervised
from align.stages.chain import run_stage
from align.trainers.ppo import PPOTrainer
from align.trainers.supervised import SupervisedTrainer
from data_formats.errors import DataError, EmptyDatasetError
from tests.align.stages.sft_case import conversations, recipe, write_lines
from tests.align.stages.small_chain import small_recipe, write_data
from tests.align.stages.test_ppo import recipe as ppo_recipe
from tests.tiny_models import byte_tokenizer, save_causal_lm

TOKENIZER = byte_tokenizer()
WORDS = {"web.jsonl": "A ", "good.jsonl": "Indeed, "}
ANNEALED = {
    "weights": {"web.jsonl": 1.0, "good.jsonl": 0.0},
    "anneal": [{"name": "cool", "start": 0.5, "weights": {"web.jsonl": 0.0, "good.jsonl": 1.0}}],
}


@pytest.fixture
def trained_on(monkeypatch):
    """Of every optimizer step, how many rows hold "Indeed, ", as the batches of the step show it, and how many do not;
    a row that holds both would be neither."""
    steps, real = [], SupervisedTrainer._get_num_items_in_batch

    def counted(self, batch_samples, device):
        rows = [TOKENIZER.decode(row) for one in batch_samples for row in one["input_ids"].tolist()]
        good = sum("Indeed, " in row and ": A " not in row for row in rows)
        plain = sum("Indeed, " not in row for row in rows)
        assert good + plain == len(rows)
        steps.append((plain, good))
        return real(self, batch_samples, device)

    monkeypatch.setattr(SupervisedTrainer, "_get_num_items_in_batch", counted)
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    recipe(folder)
    for start, (name, word) in enumerate(WORDS.items()):
        rows = conversations(24 if word == "A " else 12, start=50 * start)
        for row in rows:
            row["messages"][1]["content"] = f": {word}{row['messages'][1]['content'][2:]}"
        write_lines(folder / name, rows)
    return folder


def mixed(folder, run, **keys):
    return recipe(folder, run=run, data=[*WORDS], **keys)


def test_annealed_and_killed_is_annealed_and_never_stopped(folder, trained_on, monkeypatch):
    keys = {"mixture": ANNEALED, "save_steps": 2}
    whole = run_sft.run_sft(mixed(folder, "whole", **keys))
    # of 8 a step: none, then 2.67, 5.33 and 8, what is owed carried over
    assert trained_on == [(8, 0)] * 3 + [(5, 3), (3, 5), (0, 8)]
    assert whole["mixture"] == {
        "by": "source",
        "parts": {
            "web.jsonl": {"rows": 24, "drawn": 32, "epochs": 1.333, "share": 0.6667},
            "good.jsonl": {"rows": 12, "drawn": 16, "epochs": 1.333, "share": 0.3333},
        },
        "phases": [
            {"name": "start", "steps": [1, 3], "drawn": {"web.jsonl": 24, "good.jsonl": 0}},
            {"name": "cool", "steps": [4, 6], "drawn": {"web.jsonl": 8, "good.jsonl": 16}},
        ],
    }
    killed, real = mixed(folder, "killed", **keys), run_sft.SFTTrainer.training_step

    def training_step(self, *inputs, **more):
        if self.state.global_step == 5:
            raise SystemExit("killed")
        return real(self, *inputs, **more)

    del trained_on[:]
    monkeypatch.setattr(run_sft.SFTTrainer, "training_step", training_step)
    with pytest.raises(SystemExit):
        run_sft.run_sft(killed)
    monkeypatch.setattr(run_sft.SFTTrainer, "training_step", real)
    del trained_on[:]
    again = run_sft.run_sft(killed)
    assert again["resumed_from"] == 4 and trained_on == [(3, 5), (0, 8)]
    assert again["mixture"] == whole["mixture"] and again["heldout_loss"] == whole["heldout_loss"]
    one, other = (load_file(folder / run / "sft/model/model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert json.loads((folder / "killed/sft/summary.json").read_text())["mixture"] == whole["mixture"]


def test_packed_rows_are_of_one_part(folder, trained_on):
    weights = {"web.jsonl": 1.0, "good.jsonl": 3.0}
    summary = run_sft.run_sft(mixed(folder, "packed", packing=True, max_steps=2, mixture={"weights": weights}))
    assert trained_on == [(2, 6), (2, 6)]
    parts = summary["mixture"]["parts"]
    assert parts["web.jsonl"]["rows"] + parts["good.jsonl"]["rows"] == summary["packing"]["packs"] < 36


def test_epochs_that_leave_nothing_are_refused():
    section = SimpleNamespace(data=[Source(path="web.jsonl", epochs=0.3)])
    with pytest.raises(EmptyDatasetError, match="leave none of 1 training rows"):
        supervised.seen([{"part": "web.jsonl"}], section, SimpleNamespace(seed=0), {})


def test_epochs_of_a_source(folder, trained_on):
    sources = [{"path": "web.jsonl", "epochs": 0.5}, {"path": "good.jsonl", "epochs": 3.0}]
    summary = run_sft.run_sft(recipe(folder, run="epochs", data=sources, max_steps=None))
    # 12 of 24, and 12 three times: 48 rows, six steps of 8
    assert tuple(map(sum, zip(*trained_on, strict=True))) == (12, 36) and summary["steps"] == 6
    assert summary["rows"] == 36 and summary["mixture"] == {
        "by": "epochs",
        "parts": {
            "web.jsonl": {"rows": 24, "drawn": 12, "epochs": 0.5, "share": 0.25},
            "good.jsonl": {"rows": 12, "drawn": 36, "epochs": 3.0, "share": 0.75},
        },
    }


def test_what_a_weight_drew_is_told_too(folder):
    sources = [{"path": "web.jsonl", "weight": 1.0}, {"path": "good.jsonl", "weight": 1.0}]
    summary = run_sft.run_sft(recipe(folder, run="weight", data=sources, max_steps=1))
    assert summary["mixture"]["by"] == "weight" and summary["rows"] == 24
    assert [part["drawn"] for part in summary["mixture"]["parts"].values()] == [12, 12]


def test_categories_must_be_known_and_had_by_all(folder):
    mixture = {"by": "category", "weights": {"pets": 1.0, "farms": 1.0}}
    with pytest.raises(DataError, match=r"train\.jsonl: 8 of 24 records have no category"):
        run_sft.run_sft(recipe(folder, run="bare", mixture=mixture))
    data = [{"path": "train.jsonl", "category": "farm"}]
    with pytest.raises(RecipeError) as caught:
        run_sft.run_sft(recipe(folder, run="unknown", data=data, mixture=mixture))
    assert caught.value.problems == (
        "mixture.weights: no category of the data is called 'pets'; there are farm",
        "mixture.weights: no category of the data is called 'farms'; did you mean 'farm'?",
        "mixture.weights: farm of the data has no weight; give every one a weight",
    )


BY_CATEGORY = {"by": "category", "weights": {"language": 3.0, "knowledge": 1.0}}


@pytest.mark.parametrize(
    ("stage", "keys", "drawn"),
    [
        ("base", {"mixture": {"weights": {"documents.jsonl": 1.0, "more.jsonl": 3.0}}}, [2, 6]),
        ("rm", {"mixture": BY_CATEGORY, "center_scores": False}, [6, 2]),
        ("rm", {"mixture": BY_CATEGORY, "center_scores": False, "rankings": "prompts", "margin": "none"}, [6, 2]),
        ("dpo", {"mixture": BY_CATEGORY}, [6, 2]),
    ],
)
def test_every_supervised_stage_mixes(stage, keys, drawn, tmp_path):
    write_data(tmp_path)
    save_causal_lm(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    write_lines(tmp_path / "more.jsonl", [{"text": f"More of number {at}. " * 4} for at in range(12)])
    files = {"base": ["documents.jsonl", "more.jsonl"]}.get(stage, ["comparisons.jsonl"])
    section = {"data": files, "max_length": 128, "batch_size": 8, "micro_batch_size": 4, "max_steps": 2}
    section |= {"learning_rate": 0.01, "holdout": 0.3, "init_from": str(tmp_path / "model")} | keys
    section |= {"eval_num_replies": 1, "max_completion_length": 4} if stage == "dpo" else {}
    others = dict.fromkeys({"base", "sft", "pmp", "rm"} - {stage})
    told = small_recipe(tmp_path, model={"path": str(tmp_path / "model")}, **others, **{stage: section})
    parts = run_stage(told, stage)["mixture"]["parts"]
    assert sorted(part["drawn"] for part in parts.values()) == sorted(2 * count for count in drawn)
    names = ["documents.jsonl", "more.jsonl"] if stage == "base" else ["language", "knowledge"]
    assert [parts[name]["drawn"] for name in names] == [2 * count for count in drawn]


@pytest.mark.slow
def test_prompts_of_ppo_come_by_their_shares_and_resume(tmp_path, monkeypatch):
    words = [{"prompt": f"say {word}", "category": "say"} for word in "abcdefgh"]
    keys = {"eval_data": [], "ptx_data": [], "ptx_coef": 0.0, "save_steps": 1, "num_iterations": 4}
    keys["mixture"] = {"by": "category", "weights": {"say": 1.0, "ask": 0.0}, "anneal": []}
    keys["mixture"]["anneal"] = [{"start": 0.5, "weights": {"say": 0.0, "ask": 1.0}}]
    told = ppo_recipe(tmp_path, **keys)
    write_lines(tmp_path / "prompts.jsonl", [*words, *({"prompt": f"ask {at}", "category": "ask"} for at in range(3))])
    asked, collect, step = [], PPOTrainer.collect, PPOTrainer.step

    def collected(self, prompts, params=None):
        asked.append(sum(prompt.category == "ask" for prompt in prompts))
        return collect(self, prompts, params)

    def killed(self):
        if self.state.global_step == 3:
            raise SystemExit("killed")
        return step(self)

    monkeypatch.setattr(PPOTrainer, "collect", collected)
    monkeypatch.setattr(PPOTrainer, "step", killed)
    with pytest.raises(SystemExit):
        run_stage(told, "ppo")
    assert asked == [0, 0, 2]
    monkeypatch.setattr(PPOTrainer, "step", step)
    summary = run_stage(told, "ppo")
    assert asked == [0, 0, 2, 4] and summary["resumed_from"] == 3
    assert [phase["drawn"] for phase in summary["mixture"]["phases"]] == [{"say": 8, "ask": 0}, {"say": 2, "ask": 6}]
