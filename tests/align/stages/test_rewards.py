"""Rewards as a recipe names them, built and asked."""

import json

import pytest

from align.stages import policy_evaluation, run_ppo
from align.stages.rewards import build_reward, load_function
from data_formats.errors import MissingFileError
from data_formats.records import Message
from reward.combined import CombinedReward
from reward.protocol import RewardError, Sample, judge
from reward.sources import FunctionReward, ModelReward, load_reward
from tests.align.stages.test_ppo import recipe, write_rows
from tests.tiny_models import byte_tokenizer

SAMPLES = [
    Sample((Message("user", "2+2"),), text, columns={"reference": "4", "category": "maths"})
    for text in ("4", "#### 4", "<think>2+2</think> 4")
]


def made(folder, *parts, **changes):
    return recipe(folder, reward_from=None, reward=list(parts), **changes)


def test_reward_from_alone_is_the_plain_model(tmp_path):
    reward = build_reward(recipe(tmp_path), byte_tokenizer())
    assert isinstance(reward, ModelReward) and reward.name == "reward_model" and reward.batch_size == 64


def test_one_part_is_that_part_and_a_weight_makes_it_a_sum(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def first(prompts, completions, reference):\n    return [len(r) for r in reference]\n"
    )
    part = {"kind": "function", "function": f"{tmp_path}/mine.py:first"}
    reward = build_reward(made(tmp_path, part), byte_tokenizer())
    assert isinstance(reward, FunctionReward) and reward.name == "function"
    assert reward.score(SAMPLES) == [1.0, 1.0, 1.0]
    half = build_reward(made(tmp_path, part | {"weight": 0.5, "name": "mine"}), byte_tokenizer())
    assert isinstance(half, CombinedReward)
    assert judge(half, SAMPLES).scores == [0.5, 0.5, 0.5] and set(judge(half, SAMPLES).parts) == {"mine"}


def test_every_kind_of_rule_is_built_as_the_recipe_says(tmp_path):
    parts = [
        {"kind": "exact_match", "normalize": ["strip"]},
        {"kind": "gsm8k", "extract": "strict"},
        {"kind": "regex", "pattern": r"\d", "match": "full"},
        {"kind": "length", "maximum": 5},
        {"kind": "format"},
    ]
    reward = build_reward(made(tmp_path, *({"weight": 1.0} | part for part in parts)), byte_tokenizer())
    verdict = judge(reward, SAMPLES)
    assert verdict.parts == {
        "exact_match": [1, 0, 0],
        "gsm8k": [0, 1, 0],
        "regex": [1, 0, 0],
        "length": [1, 0, 0],
        "format": [0, 0, 1],
    }
    assert verdict.scores == [3, 1, 1]


def test_models_in_a_gate_and_beside_it(tmp_path):
    model = {"kind": "model", "model_from": str(tmp_path / "rm")}
    gate = {"kind": "gate", "helpfulness": model, "safety": {"kind": "length", "maximum": 4}, "unsafe": ["maths"]}
    built = build_reward(made(tmp_path, model | {"weight": 2.0}, gate | {"weight": -1.0}), byte_tokenizer())
    plain = load_reward(tmp_path / "rm").score(SAMPLES)
    assert judge(built, SAMPLES).parts["gate/helpfulness"] == pytest.approx(plain)
    assert built.score(SAMPLES) == pytest.approx([2 * plain[0] - 1, 2 * plain[1], 2 * plain[2]])


def test_ppo_trains_on_rules_logs_each_part_and_starts_its_critic_from_the_policy(tmp_path):
    parts = [
        {"kind": "length", "maximum": 3, "unit": "characters", "weight": 1.0},
        {"kind": "regex", "pattern": "[a-z]", "weight": 0.5, "name": "letters"},
    ]
    chosen = made(tmp_path, *parts, normalize_reward="running_mean_std", evaluation={"num_samples": 1})
    trainer, read = run_ppo.build(chosen, chosen.ppo, tmp_path / "out")
    assert read["origins"] == {"policy": {"kind": "path", "value": str(tmp_path / "policy")}}
    policy = dict(trainer.policy.raw.model.named_parameters())
    for name, parameter in trainer.critic.raw.backbone.named_parameters():
        assert parameter.equal(policy[name])
    run_ppo.run_ppo(chosen)
    lines = [json.loads(line) for line in (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        mean = {name: line[name] for name in line if name.endswith("/mean") and "score/" in name}
        prefix = "score" if "score/mean" in line else "eval/score"
        total = line["score/mean"] if "score/mean" in line else line["eval/score"]
        assert total == pytest.approx(mean[f"{prefix}/length/mean"] + 0.5 * mean[f"{prefix}/letters/mean"])
    assert "eval/score_greedy/letters/std" in lines[0] and "score/letters/std" in lines[1]
    rows = [json.loads(line) for line in (tmp_path / "run/ppo/samples.jsonl").read_text().splitlines()]
    assert all(row["score"] == row["score/length"] + 0.5 * row["score/letters"] for row in rows)


@pytest.mark.slow
def test_a_gold_reward_is_built_logged_and_told_in_the_summary(tmp_path):
    gold = [
        {"kind": "model", "model_from": str(tmp_path / "rm"), "weight": 1.0},
        {"kind": "length", "maximum": 3, "unit": "characters", "weight": 2.0},
    ]
    part = {"kind": "regex", "pattern": "[a-z]"}
    chosen = made(tmp_path, part, gold_reward=gold, evaluation={"num_samples": 1, "every_steps": 2})
    trainer, read = run_ppo.build(chosen, chosen.ppo, tmp_path / "out")
    assert read["origins"]["gold_reward.0"] == {"kind": "path", "value": str(tmp_path / "rm")}
    assert trainer.gold.name == "gold"
    summary = run_ppo.run_ppo(chosen)
    lines = [json.loads(line) for line in (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "eval/gold" in line]
    assert [line["step"] for line in looks] == [0, 2, 3]
    for line in looks:
        for name in ("eval/gold", "eval/gold_greedy"):
            assert line[name] == pytest.approx(line[f"{name}/model/mean"] + 2 * line[f"{name}/length/mean"], rel=1e-5)
    told = {name: summary[name] for name in ("gold_before", "gold", "gold_greedy_before", "gold_greedy")}
    assert list(told.values()) == [looks[at][name] for name in ("eval/gold", "eval/gold_greedy") for at in (0, -1)]
    assert not [name for line in lines if "score/mean" in line for name in line if "gold" in name]
    found = policy_evaluation.evaluate_policy(chosen, "ppo", summary)
    assert found["judge"] == "gold_reward" and found["gold_reward"] == pytest.approx(summary["gold_greedy"], rel=1e-5)
    assert found["judged_by"] == (
        "the sum of the reward model rm and the rule length (the gold reward), which nothing was trained on"
    )
    assert 0 <= summary["win_rate"] <= 1 and summary["looks_judged_by"] == found["judged_by"]


def test_rewards_compare_with_the_prompts_own_answers(tmp_path):
    chosen = made(tmp_path, {"kind": "exact_match"}, eval_data=[])
    write_rows(tmp_path / "prompts.jsonl", [{"question": f"say {word}", "answer": word} for word in "abcdefgh"])
    trainer, _ = run_ppo.build(chosen, chosen.ppo, tmp_path / "out")
    assert trainer.step()["score/mean"] == 0.0
    assert {prompt.reference for prompt in trainer.prompts} == set("abcdefgh")
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"say {word}"} for word in "abcdefgh"])
    trainer, _ = run_ppo.build(chosen, chosen.ppo, tmp_path / "out")
    with pytest.raises(Exception, match=r"has no 'reference' to compare with.*the state before it is saved in"):
        trainer.step()


def test_the_final_evaluation_judges_by_the_same_reward(tmp_path):
    part = {"kind": "regex", "pattern": "[a-z]"}
    reward = policy_evaluation.policy_reward(made(tmp_path, part | {"weight": 2.0}))
    assert reward.name == "reward"
    assert reward.score([Sample((), "x"), Sample((), "1")]) == [2.0, 0.0]


def test_functions_by_module_and_by_file(tmp_path):
    assert load_function("json:loads") is json.loads
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\nvalue = 3\n"
    )
    assert load_function(f"{tmp_path}/mine.py:A")().x == 1
    with pytest.raises(RewardError, match="has no function 'value'"):
        load_function(f"{tmp_path}/mine.py:value")
    with pytest.raises(MissingFileError, match=r"no such file .*gone\.py"):
        load_function(f"{tmp_path}/gone.py:fn")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(RewardError, match=r"importing .*broken\.py failed: ZeroDivisionError"):
        load_function(f"{tmp_path}/broken.py:fn")
    with pytest.raises(RewardError, match="importing no_such_module failed: ModuleNotFoundError"):
        load_function("no_such_module:fn")
