"""The study of DPO beside rejection sampling and PPO, without what it trains; that is run on a miniature."""

import json

from align.recipe import load_recipe
from examples.experiments import preference_methods as study


def test_the_best_reply_stands_against_the_worst_that_ended():
    scores = {"a": 1.0, "b": 3.0, "c": -2.0, "cut": -9.0, "failed": None, " ": -8.0}
    replies = [
        {"content": text, "score": score, "stop": "length" if text == "cut" else "end"}
        for text, score in scores.items()
    ]
    row = {"prompt": [{"role": "user", "content": "q"}], "category": "maths", "replies": replies}
    pair = study.best_against_worst(row)
    assert (pair.chosen, pair.rejected, pair.category, pair.prompt[0].content) == ("b", "c", "maths", "q")
    assert study.best_against_worst(row | {"replies": [replies[0], replies[0] | {"content": "as good"}]}) is None


def test_every_arm_draws_as_many_replies_as_ppo_and_dpo_reads_what_the_reward_model_read():
    recipe = load_recipe("quickstart")
    section = study.rejection_section(recipe, "rm")
    drawn = recipe.ppo.num_iterations * recipe.ppo.rollout_batch_size * recipe.ppo.rollout.num_generations
    assert section.data[0].limit * section.rollout.num_generations == drawn == 7360
    dpo = study.dpo_section(recipe, study.Tuning())
    assert dpo.data == recipe.rm.data and dpo.num_train_epochs == recipe.rm.num_train_epochs
    assert [source.limit for source in dpo.eval_data] == [study.HELDOUT]


def outcome(gold, cost):
    gain = {"difference": gold, "low": gold - 0.1, "high": gold + 0.1}
    wins = {"sampled": {"win_share": 0.75, "low": 0.7, "high": 0.8}}
    start = dict.fromkeys(study.COLUMNS, 0.0)
    found = dict.fromkeys(study.COLUMNS, gold) | {"before": start, "gold_gain_sampled": gain, "win_rates": wins}
    apart = {"gold_by_prompt": [gold, gold + 1], "gold_by_prompt_sampled": [gold, gold]}
    return found | apart | {"seed": 3, "cost": cost}


def test_the_tables_and_a_run_that_is_not_there(tmp_path, capsys):
    cost = {"cpu_seconds": 61.2, "peak_memory_gib": 0.9}
    found = {"dpo": [outcome(1.0, cost)], "ppo": [outcome(0.5, {})]}
    whole, gains, costs, apart = study.tables(found).split("\n\n")
    assert whole.splitlines()[2].startswith("| SFT, where all start | 0.00 |")
    assert whole.splitlines()[3].startswith("| DPO | 1.00 |")
    assert "| DPO | 0.00 → 1.00, +1.00 [+0.90, +1.10]; 75 % [70, 80] |" in gains
    assert costs.splitlines()[2:] == ["| DPO | 61 | 0.90 |  |"]
    assert apart.splitlines()[2] == "| PPO | +0.50 [+0.50, +0.50] | +0.50 [+0.50, +0.50] |"
    assert study.main([str(tmp_path)]) == 1
    assert str(tmp_path) in json.dumps(capsys.readouterr().err)
