import matplotlib
import pytest

from align.report.curves import ppo_panel, warmup_end
from align.report.style import LIGHT
from align.runs.run_files import Run, StageFiles


def run_of(lines, recipe=None) -> Run:
    return Run("n", {}, {"ppo": StageFiles("ppo", metrics=lines)}, recipe or {}, [])


def lines(count, a_step=4, warmup=20, every=1):
    return [
        {"step": step, "optimizer_steps": a_step * step, "warming_up": float(a_step * step < warmup), "entropy": 1.0}
        for step in range(every, count + 1, every)
    ]


@pytest.mark.parametrize(("warmup", "end"), [(20, 5.0), (0, 0.0), (6, 1.5), (1000, 10.0)])
def test_warmup_ends_where_the_recipe_says(warmup, end):
    recipe = {"ppo": {"critic_warmup_steps": warmup}}
    assert warmup_end(run_of(lines(10, warmup=warmup), recipe)) == end
    assert warmup_end(run_of(lines(10, warmup=warmup, every=5), recipe)) == end


def test_without_a_recipe_the_flag_tells():
    assert warmup_end(run_of(lines(10))) == 5.0  # the flag is logged after the update: off from iteration 5 on
    assert warmup_end(run_of(lines(3))) == 3.0
    assert warmup_end(run_of(lines(10, warmup=0))) == 0.0
    assert warmup_end(run_of([{"step": 1, "entropy": 1.0}], {"ppo": "torn"})) == 0.0


def test_plots_without_data_are_left_out():
    metrics = [
        {"step": 1, "score/mean": 0.5, "score/std": 1.0, "value/explained_variance": -9.0},
        {"step": 2, "entropy": 0.3},
    ]
    with matplotlib.rc_context(LIGHT.settings()):
        figure = ppo_panel(run_of(metrics), LIGHT)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "reward (raw score)",
        "entropy",
        "explained variance",
    ]
    assert figure.axes[2].get_ylim()[0] == -1.0
    assert ppo_panel(run_of([{"step": 1, "other": 3.0}]), LIGHT) is None


def test_a_gold_reward_and_the_exact_kl_have_plots_of_their_own():
    metrics = [
        {"step": 0, "eval/score": 0.1, "eval/gold": 0.5, "eval/gold_greedy": 0.75},
        {"step": 1, "kl/token": 0.5, "kl/full_token": 0.25, "end_rate": 1.0, "distinct_2": 0.5},
        {"step": 2, "eval/score": 0.2, "eval/gold": 0.25, "eval/gold_greedy": 0.5},
    ]
    with matplotlib.rc_context(LIGHT.settings()):
        figure = ppo_panel(run_of(metrics), LIGHT)
    plots = {axes.get_title(loc="left"): axes for axes in figure.axes}
    gold = plots["gold reward (never trained on)"]
    assert list(plots) == ["reward (raw score)", "gold reward (never trained on)", "KL a token", "end rate and variety"]
    assert {label.get_text() for label in gold.get_legend().get_texts()} == {"held-out prompts", "held-out, greedy"}
    assert [0.5, 0.25] in [list(line.get_ydata()) for line in gold.lines]
    assert [0.75, 0.5] in [list(line.get_ydata()) for line in gold.lines]
    labels = {label.get_text() for label in plots["KL a token"].get_legend().get_texts()}
    assert labels == {"sampled tokens (k1)", "whole vocabulary"}


def test_warmup_is_shaded_in_every_plot():
    recipe = {"ppo": {"critic_warmup_steps": 20}}
    metrics = [{**line, "score/mean": 0.1, "value/loss": 1.0} for line in lines(10)]
    figure = ppo_panel(run_of(metrics, recipe), LIGHT)
    for axes in figure.axes:
        (band,) = axes.patches
        assert (band.get_x(), band.get_width()) == (0, 5.0)
