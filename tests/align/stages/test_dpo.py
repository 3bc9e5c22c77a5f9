"""The stage dpo: what it is trained on, what it leaves behind, and resuming."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from align import cli
from align.models.named import policy_at
from align.recipe import check
from align.recipe.lineage import Origin, init_origin
from align.stages.chain import run_chain, run_stage
from align.stages.dpo_evaluation import evaluate_dpo
from align.stages.run_dpo import run_dpo
from align.trainers.dpo import DPOTrainer
from data_formats.errors import DataError
from tests.align.stages.small_chain import small_recipe, write_data
from tests.tiny_models import save_causal_lm

SIZES = {"max_length": 128, "batch_size": 8, "micro_batch_size": 4, "holdout": 0.3, "logging_steps": 1}
SIZES |= {"eval_batch_size": 16, "max_steps": 2, "eval_num_replies": 3, "max_completion_length": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and comparisons of grades 1 to 4 and of two rounds."""
    folder = tmp_path_factory.mktemp("dpo")
    write_data(folder)
    save_causal_lm(folder / "model")
    rows = [json.loads(line) for line in (folder / "comparisons.jsonl").read_text().splitlines()]
    graded = [row | {"grade": 1 + at % 4, "round": 1 + at % 2} for at, row in enumerate(rows)]
    (folder / "graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded))
    return folder


def recipe(place, out, *, data="comparisons.jsonl", model=None, **keys):
    section = SIZES | {"data": [{"path": data}], "learning_rate": 1e-2} | keys
    others = dict.fromkeys(("base", "sft", "pmp", "rm"))
    told = {"path": str(place / "model")} | (model or {})
    return small_recipe(place, output_dir=str(out), model=told, dpo=section, **others)


def lines(file):
    """Of metrics.jsonl, without what a clock says."""
    timed = ("time", "runtime", "per_second")
    found = map(json.loads, file.read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.endswith(timed)} for line in found]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_what_a_whole_one_is(place, tmp_path, monkeypatch):
    keys = {"save_steps": 2, "eval_steps": 2, "nll_coef": 0.2, "mask_formatting": True, "logging_steps": 3}
    whole, again = (recipe(place, tmp_path / at, keep_best=True, max_steps=5, **keys) for at in "ab")
    expected = run_stage(whole, "dpo")
    real = DPOTrainer.training_step

    def training_step(self, *inputs, **more):
        if self.state.global_step == 3:
            raise SystemExit("killed")
        return real(self, *inputs, **more)

    monkeypatch.setattr(DPOTrainer, "training_step", training_step)
    with pytest.raises(SystemExit):
        run_stage(again, "dpo")
    monkeypatch.setattr(DPOTrainer, "training_step", real)
    found = run_stage(again, "dpo")
    assert found["resumed_from"] == 2 and expected["resumed_from"] == 0
    one, other = (load_file(tmp_path / at / "dpo/model/model.safetensors") for at in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert lines(tmp_path / "a/dpo/metrics.jsonl") == lines(tmp_path / "b/dpo/metrics.jsonl")
    for name in ("eval.jsonl", "samples.jsonl", "reference.json"):
        assert (tmp_path / f"a/dpo/{name}").read_bytes() == (tmp_path / f"b/dpo/{name}").read_bytes()
    assert found["accuracy"] == expected["accuracy"] and found["accuracy_low"] < found["accuracy"] == 1
    assert found["margin"] > 0 and found["best_heldout_loss"] <= found["last_heldout_loss"]
    pair = json.loads((tmp_path / "a/dpo/eval.jsonl").read_text().splitlines()[0])
    assert pair["chosen_score"] > pair["rejected_score"]


def test_it_is_run_shown_and_started_from_like_any_stage(report, place, tmp_path, capsys):
    told = recipe(place, tmp_path / "run")
    run_chain(told)
    assert "accuracy on 14 held-out pairs" in capsys.readouterr().out
    page = (tmp_path / "run/report/index.html").read_text()
    said = re.sub("<[^>]*>", "", page)  # terms are explained by marks around them
    assert "Comparisons: DPO" in said and "margin of the implicit rewards" in said and "Samples of dpo" in said
    assert "dpo: loss" in page and "DPO is right on 100.0 % [" in said and "loss, nats a token" not in said
    assert f"DPO against {place.name}" in said and "No score judged both policies" in said
    assert "KL from where it started, nats a reply" in said
    assert "trained by the stage `dpo`" in (tmp_path / "run/dpo/model/README.md").read_text().lower()
    assert policy_at(tmp_path / "run") == str(tmp_path / "run/dpo/model")
    plain = {"data": ["x"], "num_iterations": 9}
    ppo = type(told).model_validate(told.model_dump() | {"ppo": plain}, strict=False)
    assert init_origin(ppo, "ppo") == Origin("stage", "dpo")
    assert init_origin(ppo.model_copy(update={"dpo": None}), "ppo").kind == "path"
    assert cli.main(["plan", str(tmp_path / "run/dpo/recipe.yaml")]) == 0


def test_it_is_compared_with_what_it_started_from(report, place, tmp_path):
    """By the chain's reward model, since nobody else is there; what the summary says of pairs stays what it is."""
    rest = dict.fromkeys(("base", "sft", "pmp")) | {"rm__center_scores": False, "rm__max_length": 128}
    dpo = SIZES | {"data": [{"path": "comparisons.jsonl"}], "learning_rate": 1e-2}
    told = small_recipe(place, output_dir=str(tmp_path), model={"path": str(place / "model")}, dpo=dpo, **rest)
    found = run_chain(told)["dpo"]
    rows = [json.loads(line) for line in (tmp_path / "dpo/replies.jsonl").read_text().splitlines()]
    apart = [row["dpo_rm"] - row["sft_rm"] for row in rows]
    counts = [sum(one > 0 for one in apart), sum(one == 0 for one in apart), sum(one < 0 for one in apart)]
    assert [found[name] for name in ("win", "tie", "loss")] == counts and len(rows) == 3
    assert len(rows[0]["sampled"]["sft"]) == len(rows[0]["sampled"]["dpo"]) == 8
    assert found["judged_by"] == "the reward model of the stage rm, which learnt from comparisons as dpo did"
    assert found["rm_gain"]["difference"] == pytest.approx(sum(apart) / 3) and found["kl"] != 0
    assert found["correct"] == found["pairs"] == 14 and "accuracy" in found["by_category"]["knowledge"]
    said = re.sub("<[^>]*>", "", (tmp_path / "report/index.html").read_text())
    assert f"DPO against {place.name}, greedy" in said and f"Judged by {found['judged_by']}" in said
    assert "was trained on; reward/PART" not in said
    assert f"are judged by {found['judged_by']}" in (tmp_path / "dpo/model/README.md").read_text()
    silent = told.model_copy(update={"dpo": told.dpo.model_copy(update={"eval_num_replies": 0})})
    assert evaluate_dpo(silent, "dpo", found) == {}


def test_grades_and_rounds_choose_what_is_trained_on(place, tmp_path):
    told = recipe(place, tmp_path, data="graded.jsonl", min_grade=3, newest_round=True, max_steps=1)
    summary = run_dpo(told.model_copy(update={"dpo": None}), section=told.dpo)
    assert summary["dropped_rows"]["grade below 3"] > 0 < summary["dropped_rows"]["not of round 2, the newest"]
    assert summary["rows"] + sum(summary["dropped_rows"].values()) + summary["heldout_rows"] == 40
    assert set(summary["by_grade"]) == {"1", "2", "3", "4"}  # held-out pairs are measured as they are
    with pytest.raises(DataError, match="no comparison says its 'round'"):
        run_dpo(recipe(place, tmp_path, newest_round=True))


@pytest.mark.slow  # tests/align/trainers/test_dpo.py has an adapter by itself
@pytest.mark.parametrize("adapter", ["lora", pytest.param("qlora", marks=pytest.mark.needs("bitsandbytes"))])
def test_an_adapter_is_trained_alone_in_float32_and_goes_on(place, tmp_path, adapter):
    model = {"adapter": adapter, "lora": {"rank": 2, "alpha": 4}}
    first = recipe(place, tmp_path / "a", model=model, max_steps=2)
    run_stage(first, "dpo")
    start = tmp_path / "a/dpo/model"
    run_dpo(recipe(place, tmp_path / "b", model=model, max_steps=1, init_from=str(start), logging_steps=1))
    begun, after = (load_file(at / "adapter_model.safetensors") for at in (start, tmp_path / "b/dpo/model"))
    assert begun.keys() == after.keys() and {part.dtype for part in after.values()} == {torch.float32}
    assert any(not torch.equal(begun[name], after[name]) for name in begun)
    assert lines(tmp_path / "b/dpo/metrics.jsonl")[0]["margin"] == pytest.approx(0, abs=1e-3)


def test_check_says_what_is_missing(place, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"model.lora.targets: names lm_head, which DPO's trainer reads past"):
        recipe(place, tmp_path, model={"adapter": "lora", "lora": {"targets": ["lm_head", "q_proj"]}})
    monkeypatch.setattr(check, "is_installed", lambda package: package != "trl")
    problems = check.run_problems(recipe(place, tmp_path), ["dpo"])
    assert problems == ["stage 'dpo' needs trl, which is not installed: pip install 'align-rlhf[dpo]'"]
