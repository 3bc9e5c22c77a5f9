"""One rule of what may be trained in which precision."""

import pytest

from align.recipe import RecipeError, load_recipe
from align.recipe.check import check_recipe, describe_plan, precision_warnings
from align.recipe.model_section import rounded_away

RECIPE = """\
name: t
output_dir: {out}
model: {{path: org/model}}
base: {{data: [{data}], learning_rate: 3e-4, max_length: 8, batch_size: 4, micro_batch_size: 4}}
sft: &s {{data: [{data}], learning_rate: 1e-5, max_length: 8, batch_size: 4, micro_batch_size: 4}}
rm: {{<<: *s}}
ppo: {{data: [{data}], num_iterations: 2, rollout_batch_size: 4, num_mini_batches: 2, micro_batch_size: 4,
  critic_warmup_steps: 1}}
"""


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(out=tmp_path / "out", data=tmp_path / "a.jsonl"))
    return file


@pytest.mark.parametrize("stages", [[], ["sft=null", "rm=null", "ppo=null"], ["base=null", "rm=null", "ppo=null"]])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_float16_is_refused_whatever_is_trained(recipe_file, adapter, stages):
    with pytest.raises(RecipeError, match=r"model\.dtype: float16 overflows in training without a loss scale"):
        check_recipe(recipe_file, [f"model.adapter={adapter}", "model.dtype=float16", *stages], world_size=1)


def test_whole_weights_in_bfloat16_are_told_of_at_check(recipe_file):
    recipe = load_recipe(recipe_file, ["model.dtype=bfloat16"])
    told = precision_warnings(recipe)
    assert [sentence.partition(":")[0] for sentence in told] == ["base", "sft", "rm", "ppo.policy", "ppo.critic"]
    assert "model.dtype=float32 with model.mixed_precision=bf16" in told[3]
    assert f"warning: {told[3]}" in describe_plan(recipe, 1)
    assert precision_warnings(load_recipe(recipe_file)) == []
    (base,) = precision_warnings(load_recipe(recipe_file, ["model.dtype=bfloat16", "model.adapter=lora"]))
    assert base.startswith("base: ")


def test_the_weight_that_no_longer_moves():
    """At PPO's own rate: half a step of bfloat16 just below 2^-10 is 2^-19 = 1.9e-6, just below 2^-11 it is 0.95e-6."""
    import torch

    assert "weight larger than about 0.0005;" in rounded_away(1e-6)
    for weight, moves in ((0.0009, False), (0.0004, True)):
        value = torch.tensor(weight, dtype=torch.bfloat16)
        assert (value - 1e-6 != value).item() == moves
