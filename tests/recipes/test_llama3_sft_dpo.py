"""The whole chain of recipes/llama3_sft_dpo.yaml in miniature: SFT, then DPO on the stronger comparisons."""

import json

import pytest

from align.recipe import load_recipe
from align.stages.chain import run_chain
from tests.recipes.miniature import rejection_arguments
from tests.recipes.test_qwen_rlhf import leaves

SIZES = ("max_steps", "batch_size", "save_steps", "eval_steps", "logging_steps", "warmup_steps", "micro_batch_size")
SIZES += ("max_completion_length", "path", "data_root", "output_dir", "eval_num_replies")


def in_miniature(folder):
    words = [word for word in rejection_arguments(folder) if word.startswith(("model.", "data_root", "output", "sft."))]
    sizes = {"max_steps": 3, "batch_size": 4, "save_steps": 2, "eval_steps": 2, "warmup_steps": 1, "logging_steps": 1}
    sizes |= {"eval_num_replies": 4, "max_completion_length": 8}
    return load_recipe("llama3_sft_dpo", [*words, *(f"dpo.{key}={value}" for key, value in sizes.items())])


def test_the_values_of_llama_3():
    recipe = load_recipe("llama3_sft_dpo")
    assert (recipe.sft.learning_rate, recipe.sft.max_steps, recipe.sft.mask) == (1e-5, 9000, "assistant_only")
    dpo = recipe.dpo
    assert (dpo.learning_rate, dpo.beta, dpo.nll_coef, dpo.min_grade, dpo.mask_formatting) == (1e-5, 0.1, 0.2, 3, True)


@pytest.mark.slow  # tests/align/stages/test_dpo.py has the stage by itself
def test_the_chain_runs_in_miniature(tmp_path):
    recipe = in_miniature(tmp_path)
    shipped, now = (leaves(one.model_dump()) for one in (load_recipe("llama3_sft_dpo"), recipe))
    changed = {key.removeprefix(".") for key in now if now[key] != shipped[key]}
    assert not [key for key in changed if key.rpartition(".")[2] not in SIZES]
    summary = run_chain(recipe)
    assert summary["dpo"]["origin"] == {"kind": "stage", "value": "sft"} and summary["dpo"]["steps"] == 3
    assert summary["dpo"]["dropped_rows"]["grade below 3"] == 12 and summary["dpo"]["rows"] == 12
    again = json.loads((tmp_path / "run/dpo/summary.json").read_text())
    assert again == summary["dpo"] and again["accuracy_low"] <= again["accuracy"] <= again["accuracy_high"]
    assert (tmp_path / "run/dpo/model/model.safetensors").is_file()
