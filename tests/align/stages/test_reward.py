import json
import shutil
from dataclasses import replace

import pytest
import torch

from align.data.encode import encode_prompts, encode_replies
from align.recipe.fields import Source
from align.recipe.lineage import Origin
from align.stages import preferences, run_reward
from align.stages.chain import run_stage
from align.stages.run_reward import _arguments, load, shuffled_labels, train_reward
from align.trainers.reward_groups import GroupOptions
from data_formats.errors import DataError, MissingFileError
from data_formats.records import Comparison, Message
from reward.loading import saved_tokenizer
from reward.model import RewardModel
from tests.align.stages.small_chain import small_recipe, write_data


@pytest.fixture(scope="module")
def based(tmp_path_factory):
    """The data, and a run of the base stage."""
    folder = tmp_path_factory.mktemp("based")
    write_data(folder)
    run_stage(small_recipe(folder), "base")
    return folder


@pytest.fixture
def place(based, tmp_path):
    """A copy of it of one's own."""
    return shutil.copytree(based, tmp_path / "place")


def test_shuffled_labels_exchange_exactly_half():
    pairs = [Comparison((Message("user", str(at)),), "good", "bad") for at in range(10)]
    found = shuffled_labels(pairs, seed=3)
    assert sum(pair.chosen == "bad" for pair in found) == 5
    assert [pair.prompt for pair in found] == [pair.prompt for pair in pairs]
    assert all({pair.chosen, pair.rejected} == {"good", "bad"} for pair in found)
    assert found == shuffled_labels(pairs, seed=3) != shuffled_labels(pairs, seed=4)


def test_an_arm_runs_beside_the_chain(place):
    recipe = small_recipe(place)
    section = recipe.rm.model_copy(update={"learning_rate": 0.02, "center_scores": False})
    arm = place / "run" / "rm_shuffled"
    summary = train_reward(recipe, section, Origin("stage", "base"), arm, seed=5, shuffle_labels=True)
    assert summary["shuffled_labels"] is True and summary["accuracy_before"] is None
    assert summary == json.loads((arm / "summary.json").read_text())
    rates = [json.loads(line).get("learning_rate") for line in (arm / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] == 0.02
    assert not (place / "run" / "rm").exists()


GROUPS = pytest.param({"centering": 0.01}, id="groups", marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [pytest.param({}, id="pairs"), GROUPS])
def test_the_best_model_by_held_out_loss_is_left_and_found_again_by_a_killed_run(place, monkeypatch, options):
    keys = {"keep_best": True, "eval_steps": 1, "max_steps": 4, "learning_rate": 0.3, "save_steps": 3}
    recipe = small_recipe(place, **{f"rm__{name}": value for name, value in (keys | options).items()})
    start = Origin("stage", "base")
    whole = train_reward(recipe, recipe.rm, start, place / "whole", seed=5)
    losses = {
        line["step"]: line["eval_loss"]
        for line in map(json.loads, (place / "whole/metrics.jsonl").read_text().splitlines())
        if "eval_loss" in line
    }
    assert len(losses) == 4 and whole["best_heldout_loss"] == pytest.approx(min(losses.values()))
    assert losses[whole["best_step"]] == min(losses.values()) < whole["last_heldout_loss"] == pytest.approx(losses[4])
    assert not (place / "whole/best").exists()
    model = RewardModel.from_pretrained(place / "whole/model")
    tokenizer = saved_tokenizer(place / "whole/model")
    for line in map(json.loads, (place / "whole/eval.jsonl").read_text().splitlines()[:3]):
        prompt = [Message(**turn) for turn in line["prompt"]]
        ids = torch.tensor([encode_prompts(tokenizer, [prompt])[0] + encode_replies(tokenizer, [line["chosen"]])[0]])
        assert model(ids, torch.ones_like(ids)).item() == pytest.approx(line["chosen_score"], abs=1e-4)

    def kill(*_):
        raise SystemExit("killed")

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(run_reward, "_put_best", kill)
        train_reward(recipe, recipe.rm, start, place / "killed", seed=5)
    again = train_reward(recipe, recipe.rm, start, place / "killed", seed=5)
    same = ("best_step", "best_heldout_loss", "last_heldout_loss", "accuracy", "shift", "margin")
    assert {name: again[name] for name in same} == {name: whole[name] for name in same}


def test_dropout_in_a_reward_stage_is_an_error_not_ignored(tmp_path):
    with pytest.raises(ValueError, match="attention_dropout: a reward model is trained without dropout"):
        small_recipe(tmp_path, rm__attention_dropout=0.1)


def test_every_option_of_a_reward_section_reaches_training(place):
    recipe = small_recipe(place, rm__max_length=120)
    changes = {"share_prompts": True, "lm_weight": 0.1, "centering": 0.01, "label_smoothing": 0.1, "binarise": True}
    section = recipe.rm.model_copy(update=changes | {"pooling": "mean", "unit_variance": True, "center_scores": True})
    plain = train_reward(recipe, recipe.rm, Origin("stage", "base"), place / "run" / "plain", seed=5)
    summary = train_reward(recipe, section, Origin("stage", "base"), place / "run" / "rich", seed=5)
    assert summary["rows"] == 2 * plain["rows"]
    assert summary["pairs"] == plain["pairs"] == sum(row["pairs"] for row in summary["reliability"])
    settings = json.loads((place / "run" / "rich" / "model" / "reward_config.json").read_text())
    assert settings["pooling"] == "mean" and settings["scale"] == pytest.approx(summary["scale"]) != 1
    worst = (place / "run" / "rich" / "most_wrong.jsonl").read_text().splitlines()
    assert len(worst) == min(32, summary["pairs"] - summary["correct"])
    with pytest.raises(ValueError, match=r"rm\.pooling: is max, but .* was trained with mean"):
        train_reward(
            recipe,
            section.model_copy(update={"pooling": "max"}),
            Origin("path", str(place / "run" / "rich" / "model")),
            place / "run" / "other",
            seed=5,
        )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rm__unit_variance": True, "rm__center_scores": False}, "unit_variance: needs the reference replies"),
        ({"rm__margin_scale": 2.0}, "margin_scale: margin 'none' does not use it"),
        ({"rm__binarise": True, "rm__margin": "small"}, "margin: a GOOD and BAD pair has no strength"),
        ({"rm__ties": "soft"}, "ties: only scored replies have ties"),
        ({"rm__ties": "soft", "rm__rankings": "prompts", "rm__binarise": True}, "ties: a tie has no GOOD"),
        ({"rm__min_grade": 2, "rm__rankings": "prompts"}, "min_grade: chooses among single pairs"),
    ],
)
def test_contradictions_are_refused_at_load(tmp_path, keys, words):
    with pytest.raises(ValueError, match=words):
        small_recipe(tmp_path, **keys)


def test_tag_balanced_pairs_are_counted(place):
    recipe = small_recipe(place)
    section = recipe.rm.model_copy(update={"tag_balanced": 5, "center_scores": False})
    summary = train_reward(recipe, section, Origin("stage", "base"), place / "run" / "rm", seed=5)
    assert summary["rows"] == 5
    assert "not sampled by tags" in json.dumps(summary)


def test_rankings_and_comparisons_train_in_one_stage(place):
    edited = [{"prompt": f"ask {at}", "edited": "best one", "chosen": "good", "rejected": "bad"} for at in range(6)]
    scored = [
        {
            "prompt": f"rate {at}",
            "replies": [{"content": text, "score": score} for text, score in zip("abc", (3, 1, 1), strict=True)],
        }
        for at in range(6)
    ]
    for name, rows in (("edited", edited), ("scored", scored)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = small_recipe(place)
    sources = [*(source.model_dump(exclude_none=True) for source in plain.rm.data)]
    sources += [{"path": str(place / f"{name}.jsonl")} for name in ("edited", "scored")]
    keys = {"rm__rankings": "prompts", "rm__ties": "soft", "rm__margin": "scale", "rm__data": sources}
    recipe = small_recipe(place, **keys, rm__eval_data=sources)
    summary = train_reward(recipe, recipe.rm, Origin("stage", "base"), place / "run" / "ranked", seed=5)
    measured = [json.loads(line) for line in (place / "run" / "ranked" / "eval.jsonl").read_text().splitlines()]
    assert sum(row["chosen"] == "best one" for row in measured) == 2 * 6
    assert [row["grade"] for row in measured if row["chosen"] == "a"] == [2.0] * 12
    assert summary["pairs"] == len(measured) and summary["by_grade"]["2"]["pairs"] == 12 + 6


GOOD_PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad", "grade": 1}


@pytest.mark.parametrize(
    ("row", "keys", "words"),
    [
        ({"prompt": "q", "chosen": "good"}, {}, r"bad\.jsonl, (line|row) 2.*rejected"),
        (GOOD_PAIR | {"grade": float("nan")}, {}, r"bad\.jsonl, (line|row) 2, field 'grade': expected a finite number"),
        (GOOD_PAIR | {"grade": float("inf")}, {}, r"bad\.jsonl, (line|row) 2, field 'grade': expected a finite number"),
        (GOOD_PAIR | {"chosen": 7}, {}, r"bad\.jsonl, (line|row) 2, field 'chosen'"),
        (
            GOOD_PAIR | {"grade": 9},
            {"margin": "small"},
            r"preference 1 \(.*bad\.jsonl\): grade 9 is not one of 1, 2, 3, 4",
        ),
    ],
)
def test_bad_pairs_stop_the_stage_and_touch_nothing(place, row, keys, words):
    recipe = small_recipe(place)
    out_dir, bad = place / "run" / "rm", place / "bad.jsonl"
    (out_dir / "checkpoints" / "step-1").mkdir(parents=True)
    (out_dir / "checkpoints" / "step-1" / "state.json").write_text("{}")
    bad.write_text(json.dumps(GOOD_PAIR) + "\n" + json.dumps(row) + "\n")
    section = recipe.rm.model_copy(update={"data": (Source(path=str(bad)),), **keys})
    before = {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=words):
        train_reward(recipe, section, Origin("stage", "base"), out_dir, seed=5)
    after = {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()}
    assert before == {path: data for path, data in after.items() if path.name != "recipe.yaml"}


def test_pairs_of_no_use_are_counted(place):
    recipe = small_recipe(place)
    pairs = [GOOD_PAIR | {"prompt": f"q{at}"} for at in range(8)]
    pairs += [GOOD_PAIR | {"rejected": "good"}, GOOD_PAIR | {"chosen": ""}, GOOD_PAIR | {"rejected": "  "}]
    file = place / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    section = recipe.rm.model_copy(update={"data": (Source(path=str(file)),), "center_scores": False})
    summary = train_reward(recipe, section, Origin("stage", "base"), place / "run" / "arm", seed=5)
    assert summary["rows"] + summary["pairs"] == 8
    assert sum(summary["unread_rows"].values()) == 3, summary["unread_rows"]


def test_reference_replies_are_looked_for_before_anything_is_trained(place):
    recipe = small_recipe(place)
    with pytest.raises(ValueError, match=r"rm\.center_scores: needs demonstrations whose replies are to average 0"):
        small_recipe(place, sft=None, rm__center_scores=True)
    section = recipe.rm.model_copy(
        update={"center_scores": True, "reference_data": (Source(path=str(place / "none.jsonl")),)}
    )
    with pytest.raises(MissingFileError, match=r"none\.jsonl"):
        train_reward(recipe, section, Origin("stage", "base"), place / "run" / "arm", seed=5)
    assert not (place / "run" / "arm" / "metrics.jsonl").exists()


CHANGED = {
    "margin": "scale",
    "margin_scale": 0.5,
    "label_smoothing": 0.1,
    "centering": 0.01,
    "lm_weight": 0.2,
    "share_prompts": True,
    "min_grade": 2.0,
}


def graded_pairs():
    prompt = (Message("user", "q"),)
    pairs = [Comparison(prompt, f"good {at}", "bad", float(at % 4 + 1), source="a.jsonl") for at in range(8)]
    return [replace(pair, source="b.jsonl") if at < 4 else pair for at, pair in enumerate(pairs)]


def test_rows_and_trainer_are_made_as_the_section_says(place):
    recipe = small_recipe(place)
    section = recipe.rm.model_copy(update=CHANGED)
    model, tokenizer, _ = load(recipe, section, Origin("stage", "base"), 5, stage="rm")
    rows, _, dropped = preferences.encode_training(tokenizer, graded_pairs(), section, 0)
    assert dropped == {"grade below 2": 2}
    assert [row["pairs"] for row in rows] == [[(0, 1, 0.5 * grade, 1.0)] for grade in (2, 3, 4, 2, 3, 4)]
    args = _arguments(recipe, section, "rm", place / "x", 0, evaluate=False)
    layer = preferences.output_layer(recipe, section, place / "run" / "base" / "model", fresh_head=True, stage="rm")
    trainer = preferences.make_trainer(section, "rm", args, model, tokenizer, rows, [], layer)
    assert trainer.options == GroupOptions(label_smoothing=0.1, centering=0.01, lm_weight=0.2, share_prompts=True)
    assert trainer.output_layer.shape == (len(tokenizer), model.config.hidden_size)


def test_tools_on_offer_stay_in_groups(place):
    recipe = small_recipe(place)
    _, tokenizer, _ = load(recipe, recipe.rm, Origin("stage", "base"), 5, stage="rm")
    section = recipe.rm.model_copy(update={"max_length": 4096})  # nothing is trained on them
    tool = json.dumps({"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}})
    pair = Comparison((Message("user", "q"),), "good", "bad", tools=(tool,))
    (plain,), *_ = preferences.encode(tokenizer, [pair], section)
    (group,), *_ = preferences.encode(tokenizer, [pair], section.model_copy(update={"share_prompts": True}))
    (trained,), *_ = preferences.encode_training(
        tokenizer, [pair], section.model_copy(update={"share_prompts": True}), 0
    )
    assert plain["chosen_ids"] == [*group["prompt_ids"], *group["reply_ids"][0]]
    assert trained["prompt_ids"] == group["prompt_ids"] and "add" in tokenizer.decode(group["prompt_ids"])
