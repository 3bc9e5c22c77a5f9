import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard

from align.models import push
from align.models.push import PushError
from align.recipe import STAGES, RecipeError, dump_recipe, load_recipe
from align.report.build import build_report
from align.runs import checkpoint
from align.runtime import devices
from align.runtime.card import CARD
from align.runtime.files import write_json, write_text
from align.stages import chain, common, recipe_guard
from align.stages.cards import write_cards
from align.stages.chain import run_chain, run_stage
from align.stages.clean import clear_chain
from data_formats.errors import MissingFileError
from examples.experiments.controls import require_unchanged
from reward.model import RewardModel
from tests.align.artefacts import generates, scores
from tests.align.stages.small_chain import changed_keys, small_recipe, write_data
from tests.tiny_models import save_causal_lm

FILES = {"model", "metrics.jsonl", "samples.jsonl", "recipe.yaml", "summary.json"}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    write_data(folder)
    recipe = small_recipe(folder)
    return recipe, folder / "run", run_chain(recipe)


def test_every_stage_leaves_its_files(finished):
    recipe, run, _ = finished
    for stage in recipe.stages:
        assert {path.name for path in (run / stage).iterdir()} >= FILES
        assert load_recipe(run / stage / "recipe.yaml") == recipe
        steps = [line["step"] for line in lines(run / stage / "metrics.jsonl") if "loss" in line]
        assert steps == list(range(1, getattr(recipe, stage).max_steps + 1))
        assert (run / stage / "model" / "model.safetensors").is_file()
        assert (run / stage / "model" / "tokenizer.json").is_file()
        assert not list((run / stage).glob("**/*.bin"))


def test_a_stage_leaves_a_report_and_is_finished_without_one(finished, monkeypatch, caplog):
    monkeypatch.setattr("align.report.build.build_report", build_report)
    recipe, run, summary = finished
    page = run / "report/index.html"
    assert run_stage(recipe, "sft") == summary["sft"]
    assert "sft: loss" in page.read_text(encoding="utf-8")
    written = page.stat().st_mtime_ns
    run_stage(recipe, "rm")
    assert page.stat().st_mtime_ns == written  # nothing has happened since
    shutil.rmtree(page.parent)
    page.parent.write_text("in its place")
    assert run_stage(recipe, "sft") == summary["sft"]
    page.parent.unlink()
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "align.report", None)  # one whose libraries cannot be imported
        assert run_stage(recipe, "sft") == summary["sft"]
    for told in (record.getMessage() for record in caplog.records if record.levelname == "WARNING"):
        assert told.startswith("the report could not be written (") and f"try `align report {run}`" in told
    assert len(caplog.records) >= 2 and "align.report" in told


def test_summary_gathers_the_stages(finished):
    recipe, run, summary = finished
    assert summary == read(run / "summary.json")
    assert (summary["seed"], set(summary["seconds"])) == (1, {"base", "sft", "pmp", "rm"})
    assert summary["base"] == read(run / "base" / "summary.json")
    assert 0 < summary["base"]["unigram_entropy"] < 6
    assert summary["sft"]["heldout_loss"] < summary["sft"]["heldout_loss_before"]
    assert len(lines(run / "sft" / "samples.jsonl")) == recipe.sft.eval_num_replies


def test_figures_of_the_reward_stage_follow_from_its_eval_lines(finished):
    _, run, summary = finished
    rows = lines(run / "rm" / "eval.jsonl")
    right = [row["chosen_score"] > row["rejected_score"] for row in rows]
    assert (summary["rm"]["pairs"], summary["rm"]["correct"]) == (len(rows), sum(right))
    tagged = [ok for ok, row in zip(right, rows, strict=True) if "correctness" in row["tags"]]
    assert summary["rm"]["accuracy_correctness"] == sum(tagged) / len(tagged)
    assert summary["rm"]["accuracy_low"] <= summary["rm"]["accuracy"] <= summary["rm"]["accuracy_high"]


def test_saved_reward_model_gives_the_scores_of_the_eval_lines_and_is_centred(finished):
    from align.data.encode import encode_prompt, encode_reply
    from align.models.tokenizer import load_tokenizer
    from data_formats.records import Message

    _, run, summary = finished
    model, tokenizer = RewardModel.from_pretrained(run / "rm" / "model"), load_tokenizer(run / "rm" / "model")
    row = lines(run / "rm" / "eval.jsonl")[0]
    ids = encode_prompt(tokenizer, [Message(**turn) for turn in row["prompt"]]) + encode_reply(tokenizer, row["chosen"])
    with torch.no_grad():
        score = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0]
    assert float(score) == pytest.approx(row["chosen_score"], abs=1e-5)
    assert abs(summary["rm"]["reference_mean"]) < 1e-5
    assert float(model.shift) == pytest.approx(summary["rm"]["shift"])


def test_rm_keeps_the_head_of_pmp(finished):
    _, _, summary = finished
    assert summary["pmp"]["accuracy_before"] is None  # a fresh head
    assert summary["rm"]["accuracy_before"] == summary["pmp"]["accuracy"]  # same held-out pairs


def test_the_program_on_each_card_loads_and_uses_the_model(finished):
    _, run, _ = finished
    for stage in ("base", "sft"):
        generates(run / stage / "model")
    for stage in ("pmp", "rm"):
        scores(run / stage / "model")


def test_a_card_tells_recipe_data_and_figures(finished):
    _, run, summary = finished
    rm, card = summary["rm"], ModelCard((run / "rm/model" / CARD).read_text())
    accuracy = next(one for one in card.data.eval_results if one.metric_type == "accuracy")
    assert accuracy.metric_value == pytest.approx(rm["accuracy"], abs=1e-6)
    assert accuracy.metric_args["interval"] == [rm["accuracy_low"], rm["accuracy_high"]]
    assert card.data.pipeline_tag == "text-classification" and {"align", "reward-model", "rm"} <= {*card.data.tags}
    assert f"{rm['rows']} rows" in card.text and "| `rm.data.0` | comparisons.jsonl |" in card.text
    assert "learning_rate: 0.01" in card.text and "Wilson" in card.text and "data_root" not in card.text


def test_a_card_is_left_alone_until_its_figures_change(finished):
    recipe, run, _ = finished
    told = run / "sft/model" / CARD
    told.write_text(told.read_text() + "\nA line of the user's.\n")
    write_cards(recipe, "sft")
    assert "A line of the user's." in told.read_text()
    os.utime(told, (0, 0))
    write_cards(recipe, "sft")
    assert "A line of the user's." not in told.read_text()


def test_paths_and_secrets_of_the_user_stay_out_of_a_card(tmp_path):
    data = [{"path": "/home/someone/private/pairs.jsonl"}, {"hub": "some/pairs"}]
    judge = {"kind": "function", "function": "~/mine/judge.py:score"}
    ppo = {"data": ["prompts.jsonl"], "num_iterations": 1, "rollout_batch_size": 4, "reward": judge}
    ppo |= {"num_mini_batches": 1, "critic_warmup_steps": 0}
    ppo |= {"rollout": {"max_prompt_length": 50, "max_completion_length": 6}}
    recipe = small_recipe(tmp_path, rm__data=data, ppo=ppo)
    for stage in ("rm", "ppo"):
        save_causal_lm(tmp_path / "run" / stage / "model")
        write_json(tmp_path / "run" / stage / "summary.json", {"rows": 3, "hub": "hf_0123456789abcdef"})
        write_cards(recipe, stage)
    rm, judged = ((tmp_path / "run" / stage / "model" / CARD).read_text() for stage in ("rm", "ppo"))
    assert "…/pairs.jsonl" in rm and "someone" not in rm and ModelCard(rm).data.datasets == ["some/pairs"]
    assert "…/judge.py:score" in judged and str(tmp_path) not in rm + judged and "hf_0" not in rm + judged


def test_a_card_says_who_judged_and_between_which_two(tmp_path):
    short = {"max_prompt_length": 50, "max_completion_length": 6}
    ppo = {"data": ["prompts.jsonl"], "num_iterations": 1, "critic_warmup_steps": 0, "rollout": short}
    recipe = small_recipe(tmp_path, ppo=ppo)
    folder = tmp_path / "run" / "ppo"
    save_causal_lm(folder / "model")
    who = {"judged_by": "3 annotators of votes.csv", "first": "sft", "second": "ppo"}
    rates = {"greedy": {**who, "win_share": 0.75, "low": 0.6, "high": 0.86}, "sampled": {**who, "win_share": None}}
    row = ["win / tie / loss of ppo against sft, greedy, judged by 3 annotators of votes.csv", None, "3 / 0 / 1"]
    summary = {"judge": "judge", "judged_by": who["judged_by"], "win_rates": rates, "headline": [row]}
    write_json(folder / "summary.json", summary)
    write_cards(recipe, "ppo")
    text = (folder / "model" / CARD).read_text()
    assert "Replies to held-out prompts are judged by 3 annotators of votes.csv." in text and row[0] in text
    (result,) = ModelCard(text).data.eval_results
    assert (result.metric_type, result.metric_value, result.metric_args["interval"]) == ("win_rate", 0.75, [0.6, 0.86])
    assert result.metric_name.endswith("of ppo against sft, greedy, judged by 3 annotators of votes.csv")


def test_a_card_that_cannot_be_written_costs_no_finished_stage(tmp_path, caplog):
    model = tmp_path / "run" / "sft" / "model"
    save_causal_lm(model)
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_bytes(b"\xff")  # not UTF-8, which no error of ours is
    write_json(tmp_path / "run" / "sft" / "summary.json", {"steps": 3})
    write_cards(small_recipe(tmp_path), "sft")
    assert "sft: the model card could not be written: " in caplog.text


@pytest.mark.parametrize(("kept", "left"), [("all", [1, 2, 3]), ("last", [3]), ("none", [])])
def test_of_a_finished_stage_only_the_checkpoints_wanted_are_kept(tmp_path, kept, left):
    recipe = small_recipe(tmp_path, keep_checkpoints=kept)
    folder = tmp_path / "run" / "base"
    for step in (1, 2, 3):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    write_json(folder / "summary.json", {"steps": 3})
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    run_stage(recipe, "base")
    assert checkpoint.steps(folder / "checkpoints") == left


def test_a_finished_stage_is_pushed_once_and_a_hub_that_fails_is_tried_again(tmp_path, monkeypatch, caplog):
    recipe, pushed = small_recipe(tmp_path, hub_model_id="some/run"), []
    folder = tmp_path / "run" / "sft"
    write_json(folder / "summary.json", {"steps": 3})  # what follows the training is still to be done
    write_text(folder / "recipe.yaml", dump_recipe(recipe))

    def refuse_once(model, repo, *, private):
        pushed.append((model, repo, private))
        if len(pushed) == 1:
            raise PushError("no")

    monkeypatch.setattr(push, "push", refuse_once)
    for _ in range(3):
        assert run_stage(recipe, "sft")["steps"] == 3
    assert pushed == [(folder / "model", "some/run-sft", False)] * 2
    os.utime(folder / "pushed.json", (0, 0))  # the stage was made longer since
    run_stage(recipe, "sft")
    run_stage(small_recipe(tmp_path, hub_model_id="other/run"), "sft")
    assert [repo for _, repo, _ in pushed[2:]] == ["some/run-sft", "other/run-sft"]
    assert (
        f"no; the stage is finished, try again with `align push {tmp_path}/run some/run-sft --stage sft`" in caplog.text
    )


def test_finished_stages_are_skipped(finished, capsys):
    recipe, run, summary = finished
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/model/model.safetensors")}
    assert run_chain(recipe) == summary
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert "sft: finished before" in capsys.readouterr().out


def test_a_changed_recipe_is_refused_with_the_keys(finished):
    _, run, _ = finished
    other = small_recipe(run.parent, sft__learning_rate=0.5, seed=2)
    with pytest.raises(
        recipe_guard.RecipeChangedError, match=r"sft\.learning_rate was 0\.01, is 0\.5.*--fresh"
    ) as caught:
        run_chain(other)
    assert "seed was 1, is 2" in str(caught.value)
    harmless = small_recipe(run.parent, sft__logging_steps=3, sft__micro_batch_size=8, rm__save_steps=2)
    require_unchanged(harmless, harmless.stages)
    # a change of pmp concerns rm, which starts from it, and not sft
    changed_pmp = small_recipe(run.parent, pmp__learning_rate=0.5)
    assert changed_keys(changed_pmp, "rm", run / "rm") == ["pmp.learning_rate was 0.01, is 0.5"]
    assert changed_keys(changed_pmp, "sft", run / "sft") == []


def test_a_missing_input_names_the_command(tmp_path):
    write_data(tmp_path)
    with pytest.raises(
        MissingFileError, match=r"'rm' starts from pmp.*accelerate launch align/rm.py RECIPE --stage pmp"
    ):
        run_stage(small_recipe(tmp_path), "rm")


@pytest.mark.parametrize(
    ("model", "slow", "words"),
    [
        ({"model__dtype": "bfloat16", "model__mixed_precision": "bf16"}, True, "float32 model.mixed_precision=no"),
        ({"model__mixed_precision": "bf16"}, True, "many times faster: model.mixed_precision=no"),
        ({"model__mixed_precision": "bf16"}, False, ""),
        ({}, True, ""),
    ],
)
def test_a_processor_without_products_in_bfloat16_is_told_of(tmp_path, monkeypatch, caplog, model, slow, words):
    write_data(tmp_path)
    monkeypatch.setattr(devices, "bfloat16_is_slow", lambda: slow)
    with pytest.raises(MissingFileError):  # which comes after it
        run_stage(small_recipe(tmp_path, **model), "rm")
    assert words in caplog.text and ("bfloat16" in caplog.text) == bool(words)


def test_fresh_removes_only_what_the_stages_wrote(finished, tmp_path):
    recipe, run = small_recipe(tmp_path), tmp_path / "run"
    shutil.copytree(finished[1] / "base", run / "base")
    (run / "base" / "notes.txt").write_text("mine")
    (run / "sft").mkdir()
    (run / "sft" / "summary.json").write_text("{}")
    (run / "summary.json").write_text("{}")
    clear_chain(recipe)
    left = [path.relative_to(run).as_posix() for path in sorted(run.rglob("*"))]
    assert [name for name in left if ".locks" not in name] == ["base", "base/notes.txt"]


def test_ctrl_c_saves_and_the_same_command_gives_the_same_model(finished, tmp_path, monkeypatch):
    write_data(tmp_path)
    recipe, run = small_recipe(tmp_path), tmp_path / "run"
    from align.trainers.sft import SFTTrainer

    plain = SFTTrainer.training_step
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:  # in the third of six steps of two micro-batches
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", interrupted)
    with pytest.raises(common.StageStopped, match="stopped at step 3"):
        run_stage(recipe, "base")
    assert not (run / "base/summary.json").exists()
    with pytest.raises(recipe_guard.RecipeChangedError):  # the interrupted stage is not continued with another recipe
        run_stage(small_recipe(tmp_path, base__learning_rate=0.5), "base")
    assert run_stage(recipe, "base")["resumed_from"] == 3
    one, two = ((at / "base/model/model.safetensors").read_bytes() for at in (finished[1], run))
    assert one == two
    steps = [line["step"] for line in lines(run / "base/metrics.jsonl") if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_stage_killed_after_its_last_step_finishes_without_training(tmp_path):
    write_data(tmp_path)
    recipe = small_recipe(tmp_path, base__save_steps=6)
    first = run_stage(recipe, "base")
    weights = (tmp_path / "run/base/model/model.safetensors").read_bytes()
    (tmp_path / "run" / "base" / "summary.json").unlink()
    again = run_stage(recipe, "base")
    assert (again["resumed_from"], again["steps"]) == (6, 6)
    assert again["heldout_loss"] == first["heldout_loss"]
    assert (tmp_path / "run/base/model/model.safetensors").read_bytes() == weights


def test_the_evaluation_of_a_stage_adds_its_figures_once(tmp_path, monkeypatch):
    write_data(tmp_path)
    recipe = small_recipe(tmp_path)
    seen = []

    def evaluate(recipe, stage, summary):
        seen.append(stage)
        return {"extra": summary["steps"] * 10}

    monkeypatch.setitem(STAGES, "base", replace(STAGES["base"], evaluate=("somewhere:evaluate",)))
    monkeypatch.setitem(sys.modules, "somewhere", SimpleNamespace(evaluate=evaluate))
    assert run_stage(recipe, "base")["extra"] == 60
    assert run_stage(recipe, "base")["extra"] == 60
    assert seen == ["base"]
    assert read(tmp_path / "run" / "base" / "summary.json")["hooks"] == ["somewhere:evaluate"]


def test_an_impossible_recipe_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match=r"documents\.jsonl"):
        run_chain(small_recipe(tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("sft", ["outcome:sft"]),
        ("rm", ["arms:without_pmp", "arms:manners"]),
        ("ppo", ["outcome:rolled_out"]),
    ],
)
def test_a_run_finished_under_former_names_is_not_evaluated_again(tmp_path, stage, names):
    summary = {"hooks": [f"align.stages.{name}" for name in names], "headline": [["gold", 0.0, 1.0]]}
    assert chain._evaluate(small_recipe(tmp_path), stage, summary, 0.0) == summary
    assert set(chain.FORMER.values()) <= {name for one in STAGES.values() for name in one.evaluate}
