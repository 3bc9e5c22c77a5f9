"""Mixtures and epochs in a recipe: what they take, and what cannot go together."""

import pytest

from align.recipe import RecipeError, dump_recipe, load_recipe
from align.recipe.check import describe_plan
from align.stages.recipe_guard import changes

RECIPE = """\
name: t
output_dir: out
model: {path: org/model}
base: {data: [a.txt, b.txt], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4, max_steps: 9}
sft: {data: [a.jsonl, b.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4}
rm: {data: [c.jsonl], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4}
rejection: {data: [p.jsonl], learning_rate: 1e-5, max_length: 2048, batch_size: 4, micro_batch_size: 4}
ppo: {data: [p.jsonl, q.jsonl], num_iterations: 100}
"""
TWO = "sft.mixture={weights: {a.jsonl: 1, b.jsonl: 2}}"


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    return lambda *overrides: load_recipe(file, overrides, world_size=1)


def problems(load, *overrides):
    with pytest.raises(RecipeError) as caught:
        load(*overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["sft.mixture={by: kind}"], "sft.mixture.by: must be 'source' or 'category', not 'kind' (text)"),
        (["sft.mixture={temperature: 0}"], "sft.mixture.temperature: must be above 0.0, not 0"),
        (["sft.mixture={weights: {}}"], "sft.mixture.weights: must not be empty"),
        (["sft.mixture={weights: {a.jsonl: -1}}"], "sft.mixture.weights.a.jsonl: must be at least 0.0, not -1"),
        (
            ["sft.mixture={anneal: [{start: 1, weights: {a.jsonl: 1}}]}"],
            "sft.mixture.anneal.0.start: must be below",
        ),
        (["sft.mixture={anneal: [{start: 0.5}]}"], "sft.mixture.anneal.0.weights: is required but missing"),
        (
            ["sft.mixture={weights: {a.jsonl: 1, b.jsonl: 2}, temperature: 2}"],
            "sft.mixture.temperature: makes shares of sizes, but weights say them; remove one of the two",
        ),
        (
            ["sft.mixture={weights: {a.jsonl: 1, b.json: 2}}"],
            "sft.mixture.weights: no source of the data is called 'b.json'; did you mean 'b.jsonl'?",
        ),
        (
            ["sft.mixture={weights: {a.jsonl: 1}}"],
            "sft.mixture.weights: b.jsonl of the data has no weight; give every one a weight",
        ),
        (
            ["sft.mixture={weights: {a.jsonl: 1, b.jsonl: 0}}"],
            "sft.mixture.weights: 'b.jsonl' has weight 0 and is never trained on; give it more than 0, or leave its",
        ),
        (
            ["sft.mixture={anneal: [{start: 0.5, weights: {a.jsonl: 0, b.jsonl: 0}}]}"],
            "sft.mixture.anneal.0.weights: every weight is 0; give a part a weight above 0",
        ),
        (
            [
                "sft.mixture={anneal: [{start: 0.5, weights: {a.jsonl: 0, b.jsonl: 1}}, "
                "{start: 0.5, weights: {a.jsonl: 1, b.jsonl: 1}}]}"
            ],
            "sft.mixture.anneal.1.start: 0.5 is not after 0.5, where the phase before starts; sort them",
        ),
        (
            [TWO, "sft.group_by_length=true"],
            "sft.group_by_length: fills steps with rows of like length, whose shares are not those of mixture",
        ),
        (
            [TWO, "sft.data=[{path: a.jsonl, weight: 1}, {path: b.jsonl, weight: 1}]"],
            "sft.data.0.weight: says how much of a source there is, mixture what a step takes of it; remove one",
        ),
        ([TWO, "sft.data=[a.jsonl, {path: b.jsonl, epochs: 2}]"], "sft.data.1.epochs: says how much of a source there"),
        (
            ["sft.mixture={}", "sft.data=[a.jsonl, {path: a.jsonl, limit: 3}]"],
            "sft.data.1: mixture by source tells sources apart by their names, and another one is called the same",
        ),
        (["base.mixture={by: category}"], "base.mixture.by: documents have no category; use source"),
        (["rejection.mixture={}"], "rejection.mixture: every round replies to all of the prompts, once each; give the"),
        (
            ["sft.data=[{path: a.jsonl, epochs: 2, weight: 1}]"],
            "sft.data.0.epochs: says how much of the source",
        ),
        (["sft.data=[{path: a.jsonl, epochs: 0}]"], "sft.data.0.epochs: must be above 0.0, not 0"),
        (["sft.data=[{path: a.jsonl, epochs: 101}]"], "sft.data.0.epochs: must be at most 100.0, not 101"),
        (
            ["sft.data=[{path: a.jsonl, epochs: 2}]", "sft.max_steps=9"],
            "sft.max_steps: says how long to train, and so do the epochs of data; remove it, or use weight or mixture",
        ),
        (
            ["sft.data=[{path: a.jsonl, epochs: 2}]", "sft.num_train_epochs=3"],
            "sft.num_train_epochs: 3 would multiply the epochs of data; leave it at 1",
        ),
        (
            ["sft.data=[{path: a.jsonl, epochs: 2}, a.jsonl]"],
            "sft.data.1: epochs tells sources apart by their names, and another one is called the same",
        ),
        (
            ["sft.eval_data=[{path: a.jsonl, epochs: 2}]"],
            "sft.eval_data.0.epochs: counts passes of a",
        ),
        (["ppo.data=[{path: a.jsonl, epochs: 2}]"], "ppo.data.0.epochs: counts passes of a supervised training"),
        (["rejection.data=[{path: a.jsonl, epochs: 2}]"], "rejection.data.0.epochs: counts passes of a supervised"),
        (
            ["sft.mask_observations=true", "sft.mask=all"],
            "sft.mask_observations: leaves out a part of replies",
        ),
    ],
)
def test_refusals(load, overrides, sentence):
    found = problems(load, *overrides)
    assert any(one.startswith(sentence) for one in found), found


def test_what_goes_together_is_taken_said_and_written(load, tmp_path):
    phase = "{name: last, start: 0.8, weights: {a.jsonl: 0, b.jsonl: 1}}"
    mixed = f"sft.mixture={{weights: {{a.jsonl: 1, b.jsonl: 2}}, anneal: [{phase}]}}"
    lifted = ["ppo.mixture={temperature: 3, by: category}", "base.mixture={temperature: 2}"]
    made = load(mixed, "sft.packing=true", *lifted)
    text = describe_plan(made, 1)
    said = "every step mixes by source (a.jsonl 1, b.jsonl 2), annealed last to other weights"
    assert said in " ".join(text.split())
    assert "every step mixes by category (sizes at temperature 3)" in " ".join(text.split())
    assert "base: 9 steps; every step mixes by source" in " ".join(text.split())
    folder = tmp_path / "sft"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(made), encoding="utf-8")
    assert load_recipe(folder / "recipe.yaml") == made
    assert changes(made, "sft", folder) == []
    other = load(mixed.replace("b.jsonl: 2}", "b.jsonl: 3}"), "sft.packing=true", *lifted)
    assert [one.key for one in changes(other, "sft", folder)] == ["sft.mixture.weights"]
