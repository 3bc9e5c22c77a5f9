import json

import pytest

from align.recipe.lineage import Origin
from align.stages.chain import run_stage
from align.stages.reward import shuffled_labels, train_reward
from data_formats.records import Comparison, Message
from tests.align.stages.small_chain import small_recipe, write_data


def test_shuffled_labels_exchange_exactly_half():
    pairs = [Comparison((Message("user", str(at)),), "good", "bad") for at in range(10)]
    found = shuffled_labels(pairs, seed=3)
    assert sum(pair.chosen == "bad" for pair in found) == 5
    assert [pair.prompt for pair in found] == [pair.prompt for pair in pairs]
    assert all({pair.chosen, pair.rejected} == {"good", "bad"} for pair in found)
    assert found == shuffled_labels(pairs, seed=3) != shuffled_labels(pairs, seed=4)


def test_an_arm_runs_beside_the_chain(tmp_path):
    write_data(tmp_path)
    recipe = small_recipe(tmp_path)
    run_stage(recipe, "base")
    section = recipe.rm.model_copy(update={"learning_rate": 0.02, "center_scores": False})
    arm = tmp_path / "run" / "rm_shuffled"
    summary = train_reward(recipe, section, Origin("stage", "base"), arm, seed=5, shuffle_labels=True)
    assert summary["shuffled_labels"] is True and summary["accuracy_before"] is None
    assert summary == json.loads((arm / "summary.json").read_text())
    rates = [json.loads(line).get("learning_rate") for line in (arm / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] == 0.02
    assert not (tmp_path / "run" / "rm").exists()


def test_dropout_in_a_reward_stage_is_an_error_not_ignored(tmp_path):
    with pytest.raises(ValueError, match="attention_dropout: a reward model is trained without dropout"):
        small_recipe(tmp_path, rm__attention_dropout=0.1)
