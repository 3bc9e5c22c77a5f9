"""Adapter, quantisation and optimizer keys of the recipe."""

import pytest

from align.recipe import RecipeError, load_recipe
from align.recipe.check import check_recipe

RECIPE = """\
name: t
output_dir: {out}
model: {{path: org/model}}
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


def failing(file, *overrides):
    with pytest.raises(RecipeError) as caught:
        check_recipe(file, overrides, world_size=1)
    return list(caught.value.problems)


def test_what_is_meant_without_a_word(recipe_file):
    recipe = load_recipe(recipe_file)
    assert recipe.model.adapter == "none" and recipe.sft.optimizer == "adamw" == recipe.ppo.policy.optimizer
    assert recipe.ppo.shared_backbone == "auto"
    lora = recipe.model.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets, lora.modules_to_save) == (16, 32, 0, "all-linear", ())
    assert (lora.rslora, lora.dora) == (False, False)
    found = recipe.model.quantization
    assert (found.type, found.double_quant, found.compute_dtype) == ("nf4", True, "bfloat16")


def test_adapters_are_told_in_the_recipe(recipe_file):
    told = "model.lora={rank: 4, targets: [q_proj, v_proj], modules_to_save: [lm_head], dora: true}"
    recipe = load_recipe(recipe_file, ["model.adapter=lora", told, "sft.optimizer=paged_adamw_8bit"])
    assert recipe.model.lora.targets == ("q_proj", "v_proj") and recipe.model.lora.dora
    assert recipe.sft.optimizer == "paged_adamw_8bit"
    told = "model.quantization={type: fp4, double_quant: false, compute_dtype: float32}"
    assert load_recipe(recipe_file, ["model.adapter=qlora", told]).model.quantization.type == "fp4"


def test_keys_of_adapters_without_adapter(recipe_file):
    keys = ("model.lora.rank=8", "model.lora.dora=true", "model.quantization.type=fp4", "ppo.shared_backbone=true")
    assert failing(recipe_file, *keys) == [
        "ppo.shared_backbone: is shared by adapters, but model.adapter is none; set it to lora or qlora, or this to "
        "auto",
        "model.lora.rank: shapes an adapter, but model.adapter is none; set it to lora or qlora, or remove the key",
        "model.lora.dora: shapes an adapter, but model.adapter is none; set it to lora or qlora, or remove the key",
        "model.quantization.type: is read by qlora alone, but model.adapter is none; set it to qlora, or remove the "
        "key",
    ]
    assert failing(recipe_file, "model.adapter=lora", "model.quantization.compute_dtype=float32") == [
        "model.quantization.compute_dtype: is read by qlora alone, but model.adapter is lora; set it to qlora, or "
        "remove the key"
    ]


@pytest.mark.needs("bitsandbytes")
def test_values_that_do_not_go_together(recipe_file):
    both = "model.lora={targets: [q_proj, lm_head], modules_to_save: [lm_head]}"
    assert failing(recipe_file, "model.adapter=qlora", "model.dtype=float16", both) == [
        "model.dtype: float16 overflows in training without a loss scale, which no stage has; use bfloat16 or float32",
        "model.lora.modules_to_save: 'lm_head' is among the targets too; a module is either trained whole or has an "
        "adapter, so name it once",
    ]
    whole = ["model.adapter=lora", "model.lora.modules_to_save=[lm_head]"]
    assert failing(recipe_file, *whole, "model.dtype=bfloat16") == [
        "model.lora.modules_to_save: whole modules are trained in model.dtype, and bfloat16 rounds small updates away; "
        "set that to float32 (beside which mixed_precision: bf16 is fine)"
    ]
    load_recipe(recipe_file, [*whole, "model.dtype=float32", "model.mixed_precision=bf16"])
    head = ["model.adapter=lora", "model.lora.targets=[lm_head]"]
    assert failing(recipe_file, *head) == [
        "model.lora.targets: names the head alone, which the reward models and critics of rm, ppo lack; name layers "
        "below it too"
    ]
    load_recipe(recipe_file, [*head, "rm=null", "ppo=null"])
    (half,) = failing(recipe_file, "model.adapter=qlora", "model.quantization.compute_dtype=float16")
    assert half.startswith("model.quantization.compute_dtype:") and "'bfloat16'" in half
    (typo,) = failing(recipe_file, "model.adapter=loar")
    assert typo.startswith("model.adapter:") and "did you mean 'lora'" in typo
    assert failing(recipe_file, "sft.optimizer=lion_8bit", "sft.adam_epsilon=1e-6") == [
        "sft.adam_epsilon: lion_8bit has no epsilon; remove the key, or take an adamw"
    ]
    assert failing(recipe_file, "ppo.policy.optimizer=lion_8bit", "ppo.policy.adam_epsilon=1e-8") == [
        "ppo.policy.adam_epsilon: lion_8bit has no epsilon; remove the key, or take an adamw"
    ]
    assert load_recipe(recipe_file, ["ppo.policy.optimizer=lion_8bit"]).ppo.policy.optimizer == "lion_8bit"


@pytest.mark.parametrize(("value", "shown"), [("[]", "[]"), ("q_proj", "'q_proj'"), ("[1]", "[1]")])
def test_targets_that_are_none(recipe_file, value, shown):
    assert failing(recipe_file, "model.adapter=lora", f"model.lora.targets={value}") == [
        f"model.lora.targets: must be 'all-linear' or a list of names like [q_proj, v_proj], not {shown}"
    ]


@pytest.mark.parametrize(("value", "shown"), [("maybe", "'maybe'"), ("1", "1"), ("[true]", "[True]")])
def test_a_backbone_is_shared_or_not(recipe_file, value, shown):
    assert failing(recipe_file, "model.adapter=lora", f"ppo.shared_backbone={value}") == [
        f"ppo.shared_backbone: must be 'auto', true or false, not {shown}"
    ]
