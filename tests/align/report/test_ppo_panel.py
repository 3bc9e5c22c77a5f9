import pytest
from matplotlib.figure import Figure

from align.report.curves import gold_against_proxy, ppo_panels, warmup_end
from align.runs.run_files import Run, StageFiles


def run_of(lines, recipe=None) -> Run:
    return Run("n", {}, {"ppo": StageFiles("ppo", metrics=lines)}, recipe or {}, [])


def lines(count, a_step=4, warmup=20, every=1):
    return [
        {"step": step, "optimizer_steps": a_step * step, "warming_up": float(a_step * step < warmup), "entropy": 1.0}
        for step in range(every, count + 1, every)
    ]


def drawn(panels):
    """Title -> the axes that were drawn on."""
    found = {}
    for panel in panels:
        found[panel.title] = Figure().add_subplot()
        panel.draw(found[panel.title])
    return found


def labels(axes):
    return set(axes.get_legend_handles_labels()[1])


def curves(axes):
    return [list(line.get_ydata()) for line in axes.lines]


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
    plots = drawn(ppo_panels(run_of(metrics)))
    assert list(plots) == ["reward (raw score)", "entropy", "explained variance"]
    assert plots["explained variance"].get_ylim()[0] == -1.0
    assert drawn(ppo_panels(run_of([{"step": 1, "other": 3.0}]))) == {}


def test_a_gold_reward_and_the_exact_kl_have_plots_of_their_own():
    metrics = [
        {"step": 0, "eval/score": 0.1, "eval/gold": 0.5, "eval/gold_greedy": 0.75},
        {"step": 1, "kl/token": 0.5, "kl/full_token": 0.25, "end_rate": 1.0, "distinct_2": 0.5},
        {"step": 2, "eval/score": 0.2, "eval/gold": 0.25, "eval/gold_greedy": 0.5},
    ]
    plots = drawn(ppo_panels(run_of(metrics)))
    gold = plots["gold reward (never trained on)"]
    assert list(plots) == ["reward (raw score)", "gold reward (never trained on)", "KL a token", "end rate and variety"]
    assert labels(gold) == {"held-out prompts", "held-out, greedy"}
    assert curves(gold) == [[0.5, 0.25], [0.75, 0.5]]
    assert labels(plots["KL a token"]) == {"sampled tokens (k1)", "whole vocabulary"}


def test_every_part_of_a_reward_has_a_plot():
    metrics = [
        {"step": 0, "eval/score": 0.1, "eval/score/rule: length/mean": 0.4},
        {"step": 1, "score/mean": 1, "score/a/b/mean": 2.0, "score/a/b/std": 1.0, "score/rule: length/mean": 3.0},
    ]
    plots = drawn(ppo_panels(run_of(metrics)))
    assert list(plots) == ["reward (raw score)", "part of the reward: a/b", "part of the reward: rule: length"]
    assert curves(plots["part of the reward: rule: length"]) == [[3.0], [0.4]]
    assert labels(plots["part of the reward: a/b"]) == {"rollouts", "± 1 standard deviation"}


def test_gold_falls_while_the_proxy_rises_over_the_root_of_the_kl():
    looks = ((0, 0.0, 1.0, 0.5), (10, 4.0, 3.0, 1.0), (20, 9.0, 5.0, 0.25))
    metrics = [{"step": step, "eval/kl": kl, "eval/score": score, "eval/gold": gold} for step, kl, score, gold in looks]
    metrics += [{"step": 30, "eval/score": 9.0, "eval/gold": 9.0}]  # a look without a KL has no place
    (axes,) = drawn(gold_against_proxy(run_of(metrics))).values()
    proxy, gold, _ = axes.lines
    assert list(proxy.get_xdata()) == list(gold.get_xdata()) == [0, 2, 3]
    assert list(proxy.get_ydata()) == [0, 0.5, 1] and list(gold.get_ydata()) == [0, 1, -0.5]
    assert labels(axes) == {"proxy, trained on, largest change +4", "gold, largest change +0.5"}


def test_a_judge_that_is_no_reward_has_its_win_rate_against_the_proxy():
    """At the start the policy is compared with itself, which ties: one half, logged or not."""
    looks = ((0, 0.0, 1.0, None), (5, 4.0, 3.0, 0.75), (9, 9.0, 5.0, 0.5))
    metrics = [
        {"step": step, "eval/kl": kl, "eval/score": score} | ({} if rate is None else {"eval/win_rate": rate})
        for step, kl, score, rate in looks
    ]
    plots = drawn(gold_against_proxy(run_of(metrics)))
    proxy, wins, _ = plots["win rate against proxy"].lines
    assert list(proxy.get_xdata()) == list(wins.get_xdata()) == [0, 2, 3]
    assert list(proxy.get_ydata()) == [0, 0.5, 1] and list(wins.get_ydata()) == [0, 1, 0]
    over_time = drawn(ppo_panels(run_of(metrics)))["win rate against the policy at the start"]
    assert labels(over_time) == {"held-out prompts", "neither better"}
    assert list(gold_against_proxy(run_of(metrics[:1]))) == []
    told = {"looks_judged_by": "the people of people.csv"}
    judged = Run("n", {}, {"ppo": StageFiles("ppo", told, metrics)}, {}, [])
    units = [panel.unit for panel in (*gold_against_proxy(judged), *ppo_panels(judged)) if "win rate" in panel.title]
    assert (
        units[0].endswith("; judged by the people of people.csv") and units[1] == "judged by the people of people.csv"
    )


def test_warmup_is_shaded_in_every_plot():
    recipe = {"ppo": {"critic_warmup_steps": 20}}
    metrics = [{**line, "score/mean": 0.1, "value/loss": 1.0} for line in lines(10)]
    plots = drawn(ppo_panels(run_of(metrics, recipe)))
    for axes in plots.values():
        (band,) = axes.patches
        assert (band.get_x(), band.get_width()) == (0, 5.0)
    assert ["critic warm-up" in labels(axes) for axes in plots.values()] == [True, False, False]


def test_iterations_are_counted_in_whole_numbers():
    for steps in ([1], [1, 2], [3, 4, 5], list(range(1, 117)), [10**6, 2 * 10**6]):
        (axes,) = drawn(ppo_panels(run_of([{"step": step, "entropy": 0.5} for step in steps]))).values()
        assert all(tick == int(tick) for tick in axes.get_xticks())
