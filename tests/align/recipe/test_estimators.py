"""`ppo.advantage`: what a recipe without a critic may say, and what becomes of a name from outside."""

import pytest
from pydantic import ValidationError

from align.recipe import RecipeError, load_recipe
from align.recipe.batch import batch_plan
from align.recipe.check import check_recipe, describe_plan, precision_warnings
from align.recipe.estimators import ESTIMATORS, Estimator
from align.recipe.lineage import inputs
from align.recipe.load import dump_recipe
from align.recipe.ppo_section import PPOConfig, PPOSection

WITHOUT = [name for name, facts in ESTIMATORS.items() if not facts.critic]
GROUPS = ["rloo", "grpo", "dr_grpo"]
OWN = "your own is known only in the program that registers it"
RECIPE = """\
name: t
output_dir: {out}
model: {{path: org/model, dtype: bfloat16}}
sft: {{data: [a.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4}}
ppo: {{data: [p.jsonl], num_iterations: 100, rollout_batch_size: 4, num_mini_batches: 2, micro_batch_size: 4,
  reward_from: org/reward, advantage: rloo}}
"""


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "p.jsonl"):
        (tmp_path / name).write_text("{}\n")
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(out=tmp_path / "out"))
    return file


def test_defaults_are_those_of_the_estimator():
    found = {name: PPOConfig(num_iterations=100, advantage=name) for name in ESTIMATORS}
    assert {name for name, config in found.items() if config.whiten_advantages} == {"gae", "reinforce_pp"}
    assert {name: config.critic_warmup_steps for name, config in found.items()} == dict.fromkeys(WITHOUT, 0) | {
        "gae": 50
    }
    assert [name for name, config in found.items() if config.kl_in == "loss"] == ["grpo"]
    assert PPOConfig(num_iterations=100, advantage="grpo", kl_in="reward").kl_in == "reward"
    assert PPOConfig(num_iterations=100, advantage="rloo", whiten_advantages=True).whiten_advantages
    assert not PPOConfig(num_iterations=100, advantage="reinforce_pp", whiten_advantages=False).whiten_advantages
    assert PPOConfig(num_iterations=100) == PPOConfig(num_iterations=100, advantage="gae", whiten_advantages=True)


@pytest.mark.parametrize("name", WITHOUT)
def test_each_key_of_the_critic_is_refused_by_name(name):
    keys = {
        "critic": {"learning_rate": 1e-4},
        "critic_warmup_steps": 50,
        "lam": 1.0,
        "critic_lam": 1.0,
        "cliprange_value": None,
        "vf_coef": 0.5,
    }
    data = {"data": ({"path": "p"},), "num_iterations": 9, "reward_from": "r", "critic_from": "r"}
    with pytest.raises(ValidationError) as caught:
        PPOSection(advantage=name, **data, **keys)
    for key in (*(set(keys) - {"critic"}), "critic.learning_rate"):
        assert f"{key}: is the critic's, and advantage={name} has none; remove the key" in str(caught.value)
    assert f"critic_from: names a critic, and advantage={name} has none" in str(caught.value)
    defaults = {"critic": {"learning_rate": 5e-6}, "critic_warmup_steps": 0, "lam": 0.95, "cliprange_value": 0.15}
    assert PPOConfig(num_iterations=1, num_mini_batches=1, advantage=name, **defaults).trained_roles == ("policy",)


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_of_one_and_a_discount_are_refused(name):
    for changes, words in (
        (
            {"rollout": {"num_generations": 1}},
            f"num_generations: 1 leaves a reply none to be compared with: advantage={name}",
        ),
        ({"gamma": 0.9}, f"gamma: discounts nothing, since for advantage={name} a reply is one action"),
    ):
        with pytest.raises(ValidationError) as caught:
            PPOConfig(num_iterations=9, advantage=name, **changes)
        assert words in str(caught.value)
        PPOConfig(num_iterations=9, advantage="reinforce_pp", **changes)


def test_the_recipe_says_it_with_the_full_key_and_line(recipe_file):
    wrong = [
        "ppo.micro_batch_size=2",
        "ppo.critic.learning_rate=1e-4",
        "ppo.rollout.num_generations=1",
        "ppo.critic_from=org/other",
    ]
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, wrong)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "ppo.critic.learning_rate",
        "ppo.rollout.num_generations",
        "ppo.critic_from",
    ]


@pytest.mark.parametrize(("name", "hint"), [("grop", "did you mean 'grpo'?"), ("ppo2", OWN), (3, OWN), (["gae"], OWN)])
def test_a_name_that_nobody_registered(recipe_file, name, hint):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [f"ppo.advantage={name}"])
    known = "gae, rloo, grpo, dr_grpo, reinforce_pp or what a program registers"
    assert caught.value.problems == (f"ppo.advantage: must be {known}, not {name!r}; {hint}",)


def test_a_name_from_outside(recipe_file, monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "mine", Estimator(critic=True))
    found = load_recipe(recipe_file, ["ppo.advantage=mine", "ppo.critic_warmup_steps=1", "ppo.lam=1.0"])
    assert found.ppo.trained_roles == ("policy", "critic") and not found.ppo.whiten_advantages


def test_plan_origins_and_warnings_know_of_no_critic(recipe_file, tmp_path):
    recipe = check_recipe(recipe_file, world_size=2)
    assert set(inputs(recipe, "ppo")) == {"policy", "reward"}
    plan = describe_plan(recipe, 2)
    assert "2 optimizer steps each; rloo advantages, without a critic; " in plan and "policy waits" not in plan
    assert "policy sft, reward org/reward" in plan and plan.count("critic") == 1
    assert [line.split(":")[0] for line in precision_warnings(recipe)] == ["sft", "ppo.policy"]
    assert batch_plan(recipe, "ppo", 2).steps_per_iteration == 2
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "again.yaml")
    assert again == recipe and not again.ppo.whiten_advantages and again.ppo.critic_warmup_steps == 0
    with_critic = check_recipe(recipe_file, ["ppo.advantage=gae", "ppo.critic_warmup_steps=1"], world_size=2)
    assert "critic" in inputs(with_critic, "ppo") and "ppo.critic" in "".join(precision_warnings(with_critic))
