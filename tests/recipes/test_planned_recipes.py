"""The recipes made for one card: what they plan is what their comment says and fits, and each runs in miniature."""

import json
import re

import pytest

from align.models.load import load_causal_lm
from align.plan import card, plan_stages
from align.plan.parts import GIB
from align.recipe import load_recipe
from align.recipe.shipped import find_shipped
from align.stages.chain import run_chain
from tests.recipes.miniature import arguments

CARDS = {
    "qwen2.5_0.5b_lora_24gb": ("lora", 24),
    "qwen2.5_7b_qlora_24gb": ("qlora", 24),
    "qwen3_8b_qlora_48gb": ("qlora", 48),
    "qwen2.5_1.5b_full_80gb": ("none", 80),
    "smollm2_24gb": ("none", 24),
}
SIZES = ["sft.max_steps=2", "sft.warmup_steps=1", "sft.batch_size=8", "sft.save_steps=2", "sft.eval_num_replies=2"]
SIZES += ["sft.max_completion_length=8", "pmp.batch_size=8", "rm.batch_size=8", "ppo.num_iterations=2"]
SIZES += ["ppo.rollout_batch_size=4", "ppo.num_mini_batches=1", "ppo.critic_warmup_steps=1", "ppo.save_steps=2"]
SIZES += ["ppo.rollout.max_completion_length=8", "ppo.evaluation.num_samples=2", "ppo.evaluation.limit=2"]
SIZES += ["ppo.policy.warmup_steps=1"]


@pytest.mark.parametrize("name", CARDS)
def test_the_comment_says_what_is_planned_and_the_card_holds_it(name):
    text = find_shipped(name).read_text(encoding="utf-8")
    said = dict(re.findall(r"(\w+) ([\d.]+)", re.search(r"^# planned peak, GiB: (.*)$", text, re.MULTILINE)[1]))
    plans = plan_stages(load_recipe(name))
    assert said == {plan.stage: f"{plan.peak.bytes / GIB:.1f}" for plan in plans}
    adapter, size = CARDS[name]
    assert load_recipe(name).model.adapter == adapter
    assert max(plan.peak.bytes for plan in plans) <= card.usable(card.read_size(f"{size}GB"))
    assert f"align plan {name} --gpu {size}GB" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_the_chain_runs_in_miniature(name, tmp_path):
    adapter, _ = CARDS[name]
    words = arguments(tmp_path)
    own = [word for word in words if word.startswith(("model.", "data_root", "output_dir"))]
    recipe = load_recipe(name, [*own, *SIZES, *(["model.lora.rank=2"] if adapter != "none" else [])])
    assert recipe.stages == ("sft", "pmp", "rm", "ppo") and recipe.model.adapter == adapter
    summary = run_chain(recipe)
    assert summary["sft"]["steps"] == 2 and summary["ppo"]["steps"] == 2
    for stage in recipe.stages:
        folder = tmp_path / "run" / stage / "model"
        assert (folder / "adapter_config.json").is_file() == (adapter != "none")
        assert json.loads((tmp_path / "run" / stage / "summary.json").read_text()) == summary[stage]
    policy = load_causal_lm(tmp_path / "run" / "ppo" / "model", recipe.model, use="frozen")
    assert policy.config.hidden_size == 16
