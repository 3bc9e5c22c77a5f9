"""Batch plans by hand, and impossible splits whose suggestion is possible."""

import dataclasses
import re

import pytest

from align.recipe import RecipeError, batch_plan, load_recipe
from align.recipe.batch import batch_problem
from align.recipe.load import inspect

RECIPE = """\
name: t
output_dir: out
model: {path: org/model}
sft: {data: [a.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 24, micro_batch_size: 4}
ppo: {data: [p.jsonl], ptx_data: [d.txt], ptx_coef: 0.1, ptx_ratio: 3, num_iterations: 1, rollout_batch_size: 24,
      num_mini_batches: 4, num_ppo_epochs: 2, critic_warmup_steps: 0, micro_batch_size: 5, ptx_micro_batch_size: 40}
"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    return lambda *overrides: inspect(tmp_path / "r.yaml", overrides, world_size=1).recipe


def test_supervised_plan(load):
    plan = batch_plan(load(), "sft", 2)
    # 24 rows over 2 ranks are 12 a rank, in 3 micro-batches of 4
    assert (plan.batch_size, plan.world_size, plan.rank_batch_size, plan.micro_batch_size, plan.accumulation) == (
        24,
        2,
        12,
        4,
        3,
    )
    assert plan.responses == plan.prompts == plan.ptx_batch_size == 0


def test_ppo_plan(load):
    plan = batch_plan(load(), "ppo", 2)
    # 24 prompts x 2 = 48 responses in 4 minibatches of 12: 6 a rank, in micro-batches of 5 and 1
    assert (plan.prompts, plan.responses, plan.batch_size, plan.rank_batch_size, plan.accumulation) == (
        24,
        48,
        12,
        6,
        2,
    )
    assert plan.steps_per_iteration == 8
    # 3 x 12 = 36 pretraining rows, 18 a rank: a rank never holds more than it has
    assert (plan.ptx_batch_size, plan.ptx_micro_batch_size) == (36, 18)


def test_no_ptx_rows_without_ptx(load):
    plan = batch_plan(load("ppo.ptx_coef=0"), "ppo", 1)
    assert (plan.ptx_batch_size, plan.ptx_micro_batch_size) == (0, 0)


def test_a_plan_is_frozen(load):
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch_plan(load(), "sft", 1).batch_size = 3


def test_world_size_defaults_to_the_launch(load, monkeypatch):
    recipe = load()
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert batch_plan(recipe, "sft").rank_batch_size == 8
    monkeypatch.setenv("WORLD_SIZE", "nonsense")
    assert batch_plan(recipe, "sft").world_size == 1


@pytest.mark.parametrize(
    ("stage", "world_size", "overrides", "numbers"),
    [
        ("sft", 5, [], ["24 rows", "5 ranks", "24 / 5 is not whole"]),
        ("sft", 2, ["sft.micro_batch_size=8"], ["24 rows", "2 ranks", "micro_batch_size 8", "12 rows a rank"]),
        ("sft", 1, ["sft.batch_size=25"], ["25 rows", "1 rank ", "25 rows a rank"]),
        ("ppo", 7, [], ["24 prompts", "7 ranks"]),
        ("ppo", 8, [], ["48 responses", "12 a minibatch", "8 ranks"]),
    ],
)
def test_an_impossible_split_is_explained_and_the_suggestion_works(load, stage, world_size, overrides, numbers):
    recipe = load(*overrides)
    with pytest.raises(RecipeError) as caught:
        batch_plan(recipe, stage, world_size)
    message = str(caught.value)
    for number in numbers:
        assert number in message
    suggestions = re.findall(r"([a-z_.]+=\d+)", message.partition("; try ")[2])
    assert suggestions
    for suggestion in suggestions:
        better = load(*overrides, "ppo.micro_batch_size=1" if stage == "ppo" else "seed=0", suggestion)
        assert batch_problem(better, stage, world_size) is None, suggestion


def test_minibatches_that_do_not_divide(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("num_mini_batches: 4", "num_mini_batches: 7"))
    with pytest.raises(
        RecipeError, match=r"24 prompts x 2 generations = 48 responses .* 7 .*try ppo.num_mini_batches=6$"
    ):
        load_recipe(tmp_path / "r.yaml", world_size=1)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "sft.micro_batch_size=25",
            "sft.micro_batch_size: 25 is more than batch_size (24); try sft.micro_batch_size=24",
        ),
        (
            "ppo.micro_batch_size=13",
            "ppo.micro_batch_size: 13 is more than the 12 responses of a minibatch "
            "(24 prompts x 2 generations = 48 responses / 4 minibatches); try ppo.micro_batch_size=12",
        ),
    ],
)
def test_a_micro_batch_larger_than_the_batch(load, override, sentence):
    assert batch_problem(load(override), override.partition(".")[0], 1) == sentence


def test_more_ranks_than_micro_batches(load):
    plan = batch_plan(load("sft.micro_batch_size=12"), "sft", 4)
    assert (plan.rank_batch_size, plan.micro_batch_size, plan.accumulation) == (6, 6, 1)
    plan = batch_plan(load(), "ppo", 4)
    assert (plan.rank_batch_size, plan.micro_batch_size, plan.accumulation) == (3, 3, 1)
    assert plan.ptx_micro_batch_size == 9
