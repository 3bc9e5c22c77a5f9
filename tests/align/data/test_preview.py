"""How many epochs a recipe's steps are, as far as rows can be counted without reading them."""

import json

import pytest

from align.data.preview import epochs_said, expected_rows
from align.recipe import Recipe
from align.recipe.epochs import epochs_of, epochs_of_whole_passes, in_epochs

ROWS = {"learning_rate": 1e-5, "max_length": 64, "batch_size": 8, "micro_batch_size": 8}


def recipe(folder, **stages):
    (folder / "rows.jsonl").write_text("{}\n" * 100 + "\n  \n{}")
    data = {"name": "t", "output_dir": "out", "data_root": str(folder), "model": {"path": "org/model"}}
    rows = {name: {"data": ["rows.jsonl"]} | section for name, section in stages.items()}
    return Recipe.model_validate_json(json.dumps(data | rows))


def test_steps_in_epochs_and_epochs_in_steps(tmp_path):
    found = recipe(
        tmp_path,
        sft=ROWS | {"max_steps": 250, "eval_data": ["rows.jsonl"]},
        pmp=ROWS | {"holdout": 0.2},
        rm=ROWS | {"num_train_epochs": 3, "data": [{"path": "rows.jsonl", "limit": 40}], "holdout": 0},
        ppo={"num_iterations": 50, "rollout_batch_size": 4, "num_mini_batches": 2},
    )
    assert list(epochs_said(found)) == [
        "sft: about 250 steps = 19.2 epochs of 101 rows",
        "warning: sft: 19.2 epochs are more than 16: InstructGPT's 16 are the most that were published to help, the "
        "common 1 to 3",
        "pmp: about 11 steps = 1 epoch of 81 pairs",
        "rm: about 15 steps = 3 epochs of 40 pairs",
        "warning: rm: 3 epochs are more than 2: reward models overfit after the first (Stiennon et al. 2020, "
        "InstructGPT, Llama 2)",
        "ppo: 50 iterations = 1.98 epochs of 101 prompts",
    ]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("base", {}),
        ("sft", {"packing": True}),
        ("sft", {"data": [{"hub": "org/data"}]}),
        ("sft", {"data": ["rows.csv"]}),
        ("sft", {"data": [{"path": "rows.jsonl", "weight": 1.0}]}),
        ("rm", {"rankings": "prompts"}),
        ("rm", {"min_grade": 2.0}),
    ],
)
def test_what_only_reading_could_tell_is_not_told_but_too_many_epochs_are(tmp_path, stage, changes):
    (tmp_path / "rows.csv").touch()
    found = recipe(tmp_path, **{stage: ROWS | {"num_train_epochs": 30} | changes})
    assert expected_rows(found, stage) is None
    (warning,) = epochs_said(found)
    assert warning.startswith(f"warning: {stage}: 30 epochs are more than ")


def test_epochs_of_a_source_count(tmp_path):
    data = [{"path": "rows.jsonl", "limit": 40, "epochs": 2.5}]
    found = recipe(tmp_path, sft=ROWS | {"data": data, "holdout": 0.0})
    assert expected_rows(found, "sft") == 100


def test_the_words():
    assert in_epochs(1000, epochs_of(1000, 64, 5000), 5000) == "1,000 steps = 12.8 epochs of 5,000 rows"
    once = in_epochs(10, epochs_of(10, 5, 50), 50, step="iterations", row="prompts")
    assert once == "10 iterations = 1 epoch of 50 prompts"


def test_the_short_last_step_of_an_epoch_is_one_of_its_steps():
    assert epochs_of_whole_passes(10, 64, 40) == 10
    assert epochs_of_whole_passes(4, 64, 100) == 2  # not 2.56, of which a reward model would be warned
    assert epochs_of_whole_passes(1000, 64, 5000) == pytest.approx(12.66, abs=0.01)
