"""Each rule sees its symptom in a run that was made to have it, and a sound run shows no problem."""

import dataclasses
import json
import math
import random
import re

import pytest
from transformers import TrainerCallback

from align.doctor import examine, read_history
from align.doctor.rule import RULES
from align.runs.metrics import MetricsLog
from align.trainers.ppo import PPOTrainer
from reward.sources import FunctionReward
from rollouts.hf import HFEngine
from tests.align.doctor import doctor_case
from tests.align.trainers import ppo_case

PTX = {"ptx_blocks": [[5, 6, 7, 8, 9, 10, 11, 12]] * 16, "ptx_ratio": 1, "ptx_micro_batch_size": 16}
SHORT = {"num_iterations": 8, "critic_warmup_steps": 2}


def five_letters(prompts, completions):
    return [-abs(len(text) - 5.0) for text in completions]


def constant(prompts, completions):
    return [1.0] * len(completions)


def large(prompts, completions):
    return [100.0 + len(text) for text in completions]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


class Broken(PPOTrainer):
    """Every third gradient of the policy is not a number."""

    calls = 0

    def policy_loss(self, logps_BS, batch):
        loss, stats = super().policy_loss(logps_BS, batch)
        self.calls += 1
        return loss * (math.nan if self.calls % 3 == 0 else 1.0), stats


def stale_engine():
    """An engine with other weights than the policy's."""
    return HFEngine(sharper(), pad_token_id=0, shares_module=True)


def sharper():
    """A reference that is surer than the policy."""
    model = doctor_case.taught()
    model.model.norm.weight.data *= 2.5
    return model


CRITIC = ppo_case.critic(head_scale=0.0)  # that of the sound run, which trains it

MADE = {
    "sound": lambda: {"critic_model": CRITIC},
    "lengthy": lambda: {
        "reward": doctor_case.length,
        "kl_coef": 0.0,
        "policy": {"learning_rate": 3e-3},
        "rollout": {"max_completion_length": 16},
        "num_iterations": 15,
        "critic_warmup_steps": 2,
    },
    "constant": lambda: SHORT | {"reward": constant, "num_iterations": 6},
    "dead": lambda: SHORT | {"critic": {"learning_rate": 1e-12}},
    "still": lambda: SHORT | {"policy": {"learning_rate": 1e-9}, "rollout": {"max_completion_length": 2}},
    "large": lambda: SHORT | {"reward": large, "normalize_reward": "none", "num_iterations": 6},
    "large, no samples": lambda: MADE["large"]() | {"log_samples": 0},
    "narrow": lambda: SHORT | {"reference": sharper(), "rollout": {"top_p": 0.5}, "kl_coef": 0.0},
    "narrower": lambda: SHORT | {"rollout": {"top_p": 0.1}, "num_iterations": 5},
    "ptx low": lambda: SHORT | PTX | {"ptx_coef": 1e-4, "num_iterations": 6},
    "ptx high": lambda: SHORT | PTX | {"ptx_coef": 1e3, "num_iterations": 6},
    "target": lambda: SHORT | {"kl_target": 0.02},
    "held": lambda: SHORT | {"target_kl": 1e-7, "num_mini_batches": 4, "num_iterations": 5},
    "skipping": lambda: SHORT | {"kind": Broken, "guards": {"non_finite": "skip"}, "num_iterations": 5},
    "engine": lambda: SHORT | {"engine": stale_engine(), "num_iterations": 5},
    "capped": lambda: {
        "engine": stale_engine(),
        "importance_sampling_correction": "token",
        "importance_sampling_cap": 1.2,
        "kl_in": "loss",
        "num_mini_batches": 1,
        "critic_warmup_steps": 1,
        "num_iterations": 5,
    },
}

SEEN = [
    ("lengthy", "length-hacking", r"length/mean [\d.]+ -> 1[\d.]+, .*correlate with (0\.9\d|1\.00) among the sample"),
    ("constant", "equal-rewards", r"0 in 6 of 6 iterations \(steps 1 to 6\), score/mean 1"),
    ("dead", "critic-dead", r"explained_variance is -0\.\d+ \(median over steps 5 to 8\), value/grad_norm 0\.\d"),
    ("still", "policy-still", r"e-1\d nats over steps 6 to 8, .*the learning rate is 1e-09"),
    ("still", "replies-cut", r"end_rate is 0\.\d+ on average over steps 6 to 8$"),
    ("large", "reward-clipped", r"100% of 96 sample replies have a reward of ±10"),
    ("large, no samples", "reward-clipped", r"reward/mean is 10, reward/std 0 over steps 4 to 6; the clip is ±10"),
    ("narrow", "kept-mass-low", r"truncation kept \d+% on average over steps \d to 8"),
    ("narrower", "kept-mass-low", r"truncation kept [12]\d% on average over steps 4 to 5"),
    ("ptx low", "ptx-drowned", r"its norm is 0\.00\d+ of PPO's"),
    ("ptx high", "ptx-drowning", r"its norm is [\de+.]+ times PPO's"),
    (
        "target",
        "kl-off-target",
        r"kl/reply is 0\.\d+ over steps 6 to 8, kl_target 0\.02, kl_coef 0\.04\d* at the end",
    ),
    ("held", "steps-left-out", r"^2.6 of 4 steps an iteration are left out over steps 1 to 5, target_kl 1e-07$"),
    ("skipping", "steps-not-finite", r"^2 steps in 2 iterations, steps 3 to 4$"),
    ("engine", "engine-apart", r"the log-probabilities differ by 0\.\d+ nats a token over steps 4 to 5"),
    ("capped", "engine-apart", r"^the log-probabilities differ by 0\.\d+ nats a token over steps 4 to 5$"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Name -> the folder of that run, made when it is first asked for."""
    folders = {}

    def make(name):
        if name not in folders:
            folders[name] = doctor_case.run(tmp_path_factory.mktemp("run"), **MADE[name]())
        return folders[name]

    return make


@pytest.fixture
def copy(made, tmp_path):
    """The sound run's metrics.jsonl as lines, and a function that reads them once they were changed."""
    lines = (made("sound") / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "recipe.yaml").write_text((made("sound") / "recipe.yaml").read_text())

    def ask(changed):
        (tmp_path / "metrics.jsonl").write_text("\n".join(changed) + "\n")
        return doctor_case.words(examine(read_history(tmp_path)))

    return lines, ask


RARER = ("constant", "large, no samples", "narrow", "narrower", "ptx low", "ptx high", "target", "held", "capped")
RARER += ("lengthy", "dead", "large")


@pytest.mark.parametrize(
    ("name", "rule", "words"), [pytest.param(*one, marks=[pytest.mark.slow] * (one[0] in RARER)) for one in SEEN]
)
def test_a_rule_sees_what_the_run_was_made_to_show(made, name, rule, words):
    found = doctor_case.words(doctor_case.diagnosis(made(name))[1])
    assert re.search(words, found.get(rule, "")), found


def late(before, after):
    """One figure up to step 10 and another from there on."""
    return lambda step: before if step <= 10 else after


# What a run does that goes wrong is not the same on every machine, so these figures are written into the lines of a
# sound one of 20 iterations, of which the first 4 train the critic alone.
WRITTEN = [
    (
        "updates-too-large",
        {"policy/clipped": 0.1, "policy/approx_kl": 0.3, "policy/ratio_max": 4.0},
        "in 16 of 16 iterations over 0.3 clipped or 0.1 nats (medians: policy/clipped 0.1, policy/approx_kl 0.3; "
        "largest ratio 4); the largest policy/approx_kl is 0.3",
    ),
    (
        "updates-too-large",
        {"policy/clipped": 0.1, "policy/approx_kl": lambda step: 1.5 if step == 12 else 0.01, "policy/ratio_max": 9.0},
        "in 1 of 16 iterations over 0.3 clipped or 0.1 nats (medians: policy/clipped 0.1, policy/approx_kl 0.01; "
        "largest ratio 9); the largest policy/approx_kl is 1.5",
    ),
    (
        "first-step-large",
        {"policy/approx_kl": lambda step: 0.05 if step == 5 else 0.004},
        "policy/approx_kl is 0.05 at step 5, later 0.004 (median)",
    ),
    (
        "kl-runaway",
        {"kl/token": 2.0, "kl/reply": lambda step: 4.0 * step},
        "kl/reply is 74 nats over steps 17 to 20, 2 a token, and rises",
    ),
    (
        "kl-runaway",
        {"kl/token": 2.0, "kl/reply": lambda step: 20.0 * (21 - step)},
        "kl/reply is 50 nats over steps 17 to 20, 2 a token, and falls",
    ),
    ("negative-kl", {"kl/token": -0.2, "kl/k3_token": 0.1}, "kl/token is -0.2 nats on average over steps 13 to 20"),
    ("entropy-collapse", {"entropy": late(2.0, 0.1)}, "2 -> 0.1 nats a token (steps 1 to 4, then steps 17 to 20)"),
    ("entropy-explosion", {"entropy": late(1.0, 3.0)}, "1 -> 3 nats a token (steps 1 to 4, then steps 17 to 20)"),
    ("duplicate-replies", {"distinct": late(1.0, 0.25)}, "distinct 1 -> 0.25 (steps 1 to 4, then steps 17 to 20)"),
    (
        "duplicate-replies",
        {"distinct": 1.0, "distinct_2": late(0.8, 0.1), "length/mean": 4.0},
        "distinct_2 0.8 -> 0.1 (steps 1 to 4, then steps 17 to 20)",
    ),
    (
        "policy-still",
        {"kl/token": 0.0, "kl/k3_token": 1e-6, "policy/approx_kl": 1e-7, "policy/clipped": 0.0, "score/mean": 0.5},
        "kl/k3_token is 1e-06 nats over steps 15 to 20, policy/approx_kl 1e-07, policy/clipped 0; "
        "score/mean 0.5 -> 0.5; the learning rate is 0.002",
    ),
    ("replies-cut", {"end_rate": 0.5}, "end_rate is 0.5 on average over steps 14 to 20"),
    (
        "replies-cut",
        {"end_rate": late(0.95, 0.3)},
        "end_rate is 0.3 on average over steps 14 to 20, 0.95 in the first third",
    ),
    (
        "replies-shrink",
        {"length/mean": lambda step: 21.0 - step},
        "length/mean 13.5 -> 3.5 tokens (first and last third of steps 5 to 20)",
    ),
    (
        "score-falls",
        {"score/mean": lambda step: 2 - 0.1 * step, "score/std": 0.3},
        "score/mean 1.25 -> 0.25 (first and last third of steps 5 to 20)",
    ),
    (
        "value-clip-saturated",
        {"value/clipped": 0.5, "returns/std": 0.4},
        "value/clipped is 50% of the tokens on average over steps 1 to 20; returns/std is 0.4, cliprange_value 0.5",
    ),
    (
        "critic-dead",
        {"value/explained_variance": -0.2, "value/grad_norm": 0.3},
        "value/explained_variance is -0.2 (median over steps 13 to 20), value/grad_norm 0.3",
    ),
]
UNSEEN = [  # almost the same
    {"policy/approx_kl": lambda step: 0.05 if step == 5 else 0.012},
    {"policy/approx_kl": lambda step: 0.015 if step == 5 else 0.001},
    {"distinct": 1.0, "distinct_2": late(0.8, 0.3), "length/mean": late(4.0, 16.0), "score/mean": 0.5},  # longer ones
]


@pytest.fixture
def written(copy):
    """What is said of 20 iterations of the sound run in which some figures are others: numbers, or functions of the
    step."""
    lines, ask = copy
    rows = [json.loads(line) for line in lines]
    rows += [row | {"step": row["step"] + 8} for row in rows[4:]]

    def value(figure, step):
        return figure(step) if callable(figure) else figure

    def see(figures):
        changed = ({key: value(figures[key], row["step"]) for key in figures.keys() & row.keys()} for row in rows)
        return ask([json.dumps(row | new) for row, new in zip(rows, changed, strict=True)])

    return see


@pytest.mark.parametrize(("rule", "figures", "words"), WRITTEN)
def test_a_rule_sees_the_figures_of_its_symptom_and_no_other_rule_does(written, rule, figures, words):
    assert written(figures) == {rule: words}


@pytest.mark.parametrize("figures", UNSEEN)
def test_figures_that_are_almost_those_of_a_symptom_are_none(written, figures):
    assert written(figures) == {}


def test_a_sound_run_shows_nothing(made):
    history, found = doctor_case.diagnosis(made("sound"))
    assert doctor_case.words(found) == {}
    assert set(found.clear) | set(found.blind) == set(RULES)
    assert len(history.iterations) == 12 and len(history.trained().iterations) == 8


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("dead", {"critic-dead"}, marks=pytest.mark.slow),
        ("engine", {"engine-apart"}),
        pytest.param("ptx low", {"ptx-drowned"}, marks=pytest.mark.slow),
    ],
)
def test_what_ails_only_one_part_brings_no_other_rule_up(made, name, expected):
    assert set(doctor_case.words(doctor_case.diagnosis(made(name))[1])) == expected


def test_weights_an_iteration_apart_by_design_are_no_fault_of_the_engine(made):
    capped = r"^\d\d% of the importance weights stand at their cap over steps 4 to 5$"
    for name, words in (("engine", None), ("capped", capped)):
        history, _ = doctor_case.diagnosis(made(name))
        rollout = {**(history.setting("rollout") or {}), "overlap": True}
        behind = dataclasses.replace(history, settings={**history.settings, "rollout": rollout})
        found = doctor_case.words(examine(behind)).get("engine-apart")
        assert (found is None) == (words is None) and (words is None or re.search(words, found))


def test_a_critic_that_knows_much_but_gets_no_gradient(made, tmp_path):
    made("sound")
    frozen = SHORT | {"critic_model": CRITIC, "vf_coef": 1e-13}
    found = doctor_case.words(doctor_case.diagnosis(doctor_case.run(tmp_path, **frozen))[1])
    assert set(found) == {"critic-dead"}
    assert re.search(r"explained_variance is 0\.\d+ .*, value/grad_norm \d\.?\d*e-1\d$", found["critic-dead"])


@pytest.mark.slow
def test_gold_that_falls_while_the_score_rises(tmp_path):
    """Length is paid for; gold wants replies of five letters."""
    wanted = MADE["lengthy"]() | {"gold": FunctionReward(five_letters), "evaluation": {"every_steps": 3}}
    words = doctor_case.words(
        doctor_case.diagnosis(doctor_case.run(tmp_path, **wanted, eval_prompts=ppo_case.prompts(8)))[1]
    )
    found = re.fullmatch(
        r"eval/gold peaked at step (\d+) with (-[\d.]+) and is (-[\d.]+) at step 15, "
        r"while eval/score went from ([\d.]+) to ([\d.]+)",
        words["over-optimisation"],
    )
    assert int(found[1]) <= 9 and float(found[3]) < float(found[2]) - 5 and float(found[5]) > float(found[4])
    assert re.search("eval/gold went from -", words["length-hacking"])


def looked(made, wins, gold=()):
    """What the doctor says of a sound run whose looks are these; the score rises."""
    history, _ = doctor_case.diagnosis(made("sound"))
    looks = [{"step": at, "eval/score": 0.1 * at, "eval/win_rate": rate} for at, rate in enumerate(wins)]
    for line, one in zip(looks, gold, strict=False):
        line["eval/gold"] = one
    stage = dataclasses.replace(history.stage, metrics=[*history.stage.metrics, *looks])
    return examine(dataclasses.replace(history, stage=stage))


def test_a_win_rate_that_falls_while_the_score_rises(made):
    words = doctor_case.words(looked(made, (0.55, 0.7, 0.66, 0.52)))["over-optimisation"]
    assert words == (
        "eval/win_rate peaked at step 1 with 0.7 and is 0.52 at step 3, while eval/score went from 0.1 to 0.3"
    )
    for well in ((0.55, 0.6, 0.7, 0.7), (0.55, 0.7, 0.66, 0.66)):  # risen; and fallen by no more than chance
        assert "over-optimisation" not in doctor_case.words(looked(made, well))
    assert "over-optimisation" in looked(made, (0.55, 0.7)).blind
    gold = doctor_case.words(looked(made, (0.55, 0.7, 0.66, 0.52), gold=(1.0, 0.5, 0.2, 0.1)))["over-optimisation"]
    assert gold.startswith("eval/gold peaked at step 0 with 1 ")


def test_a_run_within_the_critics_warm_up(tmp_path):
    long = {"num_iterations": 25, "critic_warmup_steps": 40, "callbacks": [StopAt(3)]}
    found = doctor_case.diagnosis(doctor_case.run(tmp_path, **long))[1]
    words = doctor_case.words(found)["never-trained"]
    assert words == (
        "the critic alone was trained in all 3 iterations logged, steps 1 to 3, by 6 optimizer steps "
        "(critic_warmup_steps is 40)"
    )
    assert found.blind["policy-still"] == "no iteration that trained the policy"


def test_a_run_without_a_critic_is_told_nothing_of_one(made):
    history, with_one = doctor_case.diagnosis(made("dead"))
    assert {finding.rule.name: finding.rule.changes for finding in with_one.findings}["critic-dead"]
    lines = [
        {key: value for key, value in line.items() if key != "lr/critic" and not key.startswith("value/")}
        | {"steps_not_finite": 1.0}
        for line in history.stage.metrics
    ]
    settings = history.settings | {"advantage": "rloo"}
    without = dataclasses.replace(history, stage=dataclasses.replace(history.stage, metrics=lines), settings=settings)
    assert history.has_critic and not without.has_critic
    found = examine(without)
    assert found.blind["critic-dead"] == found.blind["value-clip-saturated"] == "the run has no critic"
    told = {finding.rule.name: finding.rule for finding in found.findings}["steps-not-finite"]
    assert told.changes == ("ppo.policy.learning_rate lower", "ppo.guards.non_finite: stop, to see the first")
    for rule in RULES.values():
        if not any(key.startswith("value/") for key in rule.needs) and rule.name != "never-trained":
            left = rule.without_critic()
            assert left.causes and left.changes and "critic" not in str((left.causes, left.changes))


def test_figures_that_rules_need_are_logged(made):
    logged = set()
    for name in ("sound", "ptx low", "capped"):
        logged |= {key for line in doctor_case.diagnosis(made(name))[0].iterations for key in line}
    needed = {key for rule in RULES.values() for key in rule.needs}
    assert needed - logged == {"eval/win_rate", "eval/gold"}


def test_lines_that_were_lost_torn_or_written_twice(copy):
    lines, ask = copy
    assert ask(lines) == {}
    assert ask([*lines[:4], *lines[6:]]) == {"steps-missing": "nothing between 4 and 7"}
    assert ask(lines[2:])["steps-missing"] == "nothing between 0 and 3"
    doubled = ask([*lines, *lines[10:]])["steps-doubled"]
    assert doubled == "2 lines of a step that was there before; the order goes back at step 11"
    torn = ask([*lines[:-1], lines[-1][:50]])
    assert (
        set(torn) == {"file-not-whole"} and "metrics.jsonl: 1 of 12 lines are no JSON objects" in torn["file-not-whole"]
    )


def test_figures_that_are_not_finite(made, tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for line in MetricsLog(made("sound") / "metrics.jsonl").read():
        log.append(line | ({"policy/loss": float("nan"), "kl/reply": float("inf")} if line["step"] in (9, 11) else {}))
    found = doctor_case.words(examine(read_history(tmp_path)))
    assert found == {"not-finite": "kl/reply, policy/loss, in 2 iterations, the first at step 9"}


def test_older_runs_without_some_figures_are_read_without_noise(made, tmp_path):
    keep = {"step", "score/mean", "score/std", "kl/token", "end_rate"}
    rows = [json.loads(line) for line in (made("narrow") / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({key: row[key] for key in keep}) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    found = examine(read_history(tmp_path))
    assert doctor_case.words(found) == {}
    assert found.blind["ptx-drowned"] == "no iteration that trained the policy"  # as far as the file says
    assert found.blind["never-trained"] == "no optimizer_steps"
    assert found.blind["reward-clipped"].startswith("no reward/mean")


def test_lines_of_any_shape_never_make_a_rule_fail(made, tmp_path):
    rows = [json.loads(line) for line in (made("capped") / "metrics.jsonl").read_text().splitlines()] * 3
    values = (None, 0, -1, 0.0, 1e308, -1e308, True, "text", [], {}, 10**400)
    for seed in range(100):
        rng = random.Random(seed)
        keys = rng.sample(sorted(rows[0]), rng.randint(1, len(rows[0])))
        lines = []
        for at, row in enumerate(rng.sample(rows, rng.randint(1, len(rows)))):
            row = {key: row[key] for key in (*keys, "score/mean")} | {"step": rng.choice([at, at + 1, 1, 7.0])}
            row |= {key: rng.choice(values) for key in rng.sample(sorted(row), rng.randint(0, 3))}
            lines.append(json.dumps(row | {"step": rng.choice([row["step"], at + 1])}))
        (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({"step": 99, "score/mean": 1.0})]))
        found = examine(read_history(tmp_path))
        assert {finding.rule.name for finding in found.findings} | set(found.clear) | set(found.blind) == set(RULES)
        json.dumps(found.as_json(), allow_nan=False)


def test_a_run_that_becomes_slower(made, tmp_path):
    rows = [json.loads(line) for line in (made("sound") / "metrics.jsonl").read_text().splitlines()]
    rows += [row | {"step": row["step"] + 8} for row in rows[4:]]  # long enough for a trend
    for row in rows[-6:]:
        row |= {"tokens_per_second": 300.0, "seconds/score": 0.9}
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for row in rows:
        log.append(row)
    found = doctor_case.words(examine(read_history(tmp_path)))
    assert re.search(r"tokens_per_second 1e\+03 -> .*; most of it in seconds/score: 0\.1 -> 0\.9 s", found["slowing"])
