"""The study of the estimators, without what it trains; that is run on a finished miniature of the quickstart."""

import pytest

from align.recipe import load_recipe
from align.recipe.estimators import ESTIMATORS
from examples.experiments import estimators


@pytest.mark.parametrize("name", ESTIMATORS)
def test_only_the_estimator_and_what_hangs_on_it_changes(name):
    ppo = load_recipe("quickstart").ppo
    changed = estimators.section_with(ppo, name)
    apart = {key for key, value in changed.model_dump().items() if value != ppo.model_dump()[key]}
    without_critic = {"advantage", "critic", "critic_warmup_steps"}
    whitened = set() if ESTIMATORS[name].whitens else {"whiten_advantages"}
    assert apart == (set() if name == "gae" else without_critic | whitened)


def test_the_table_and_a_run_that_is_not_there(tmp_path, capsys):
    figures = dict.fromkeys(estimators.COLUMNS, 0.5)
    lines = estimators.table(
        {"gae": [figures, figures | {"gold": 1.0, "seconds": 99.6}], "rloo": [figures]}
    ).splitlines()
    assert lines[0].startswith("| advantage | gold, greedy | gold, T = 1 |")
    assert lines[2].startswith("| gae | 0.75 [0.50, 1.00] | 0.50 [0.50, 0.50] |") and "| 50 [0, 100] |" in lines[2]
    assert lines[3].startswith("| rloo | 0.50 | 0.50 |")
    assert estimators.main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
