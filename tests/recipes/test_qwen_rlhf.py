"""The whole chain of recipes/qwen_rlhf.yaml, in miniature."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.models.critic import Critic
from align.recipe import load_recipe
from align.stages.chain import run_chain
from reward.model import RewardModel
from tests.recipes.miniature import OVERRIDES, arguments

STAGES = ("sft", "pmp", "rm", "ppo")
STEPS = {"sft": 3, "pmp": 3, "rm": 3, "ppo": 3}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    recipe = load_recipe("qwen_rlhf", arguments(folder))
    return recipe, folder, run_chain(recipe)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def moved(one, other) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return any(not torch.equal(a, b) for a, b in pairs)


def leaves(value, key=""):
    if not isinstance(value, dict):
        return {key: value}
    return {name: leaf for part, item in value.items() for name, leaf in leaves(item, f"{key}.{part}").items()}


def test_only_sizes_differ_from_the_recipe(chain):
    recipe, _, _ = chain
    shipped, now = (leaves(one.model_dump()) for one in (load_recipe("qwen_rlhf"), recipe))
    changed = {key.removeprefix(".") for key in now if now[key] != shipped[key]}
    assert changed <= {word.split("=")[0] for word in OVERRIDES} | {"model.path", "data_root", "output_dir"}
    values = ("rate", "coef", "clip", "top_p", "decay", "adam", "norm", "scheduler")
    assert not any(word in key for key in changed for word in values)
    assert (recipe.model.mixed_precision, recipe.model.gradient_checkpointing) == ("bf16", True)
    assert recipe.stages == STAGES


def test_every_stage_leaves_what_the_layout_lists(chain):
    recipe, folder, summary = chain
    for stage in STAGES:
        out = folder / "run" / stage
        for name in ("metrics.jsonl", "samples.jsonl"):
            assert lines(out / name), (stage, name)
        assert load_recipe(out / "recipe.yaml") == recipe
        assert json.loads((out / "summary.json").read_text()) == summary[stage]
        weights = {path.name for path in (out / "model").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= weights
        assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["step-2", "step-3"]
        assert max(line["step"] for line in lines(out / "metrics.jsonl")) == STEPS[stage] == summary[stage]["steps"]
    assert json.loads((folder / "run" / "summary.json").read_text()) == summary
    assert set(summary["seconds"]) == set(STAGES)
    left = [path.name for path in (folder / "run").rglob("*") if path.name.startswith(".") or "tmp" in path.name]
    assert left == [".locks"]


def test_every_model_loads_by_itself_and_has_learnt(chain):
    _, folder, _ = chain
    run, start = folder / "run", AutoModelForCausalLM.from_pretrained(folder / "Qwen2-tiny")
    sft, policy = (AutoModelForCausalLM.from_pretrained(run / stage / "model") for stage in ("sft", "ppo"))
    assert type(policy).__name__ == "Qwen2ForCausalLM"
    assert moved(sft, start) and moved(policy, sft)
    pmp, rm = (RewardModel.from_pretrained(run / stage / "model") for stage in ("pmp", "rm"))
    assert moved(pmp.backbone, start.model) and moved(rm.backbone, pmp.backbone)
    assert moved(Critic.from_pretrained(run / "ppo" / "critic").backbone, rm.backbone)
    for stage in STAGES:
        tokenizer = AutoTokenizer.from_pretrained(run / stage / "model")
        text = tokenizer.apply_chat_template([{"role": "user", "content": "A cat!"}], tokenize=False)
        ends = "" if stage in ("pmp", "rm") else "\n"  # a reward model reads the state at the end of the reply
        assert text == f"<|im_start|>user\nA cat!<|im_end|>{ends}"


def test_the_lineage_is_the_reports(chain):
    _, folder, summary = chain
    assert summary["pmp"]["origin"] == {"kind": "path", "value": str(folder / "Qwen2-tiny")}
    assert summary["rm"]["origin"] == {"kind": "stage", "value": "pmp"}
    assert summary["ppo"]["origins"] == {
        "policy": {"kind": "stage", "value": "sft"},
        "reward": {"kind": "stage", "value": "rm"},
    }
    assert summary["pmp"]["accuracy_before"] is None
    assert summary["rm"]["accuracy_before"] == summary["pmp"]["accuracy"]  # the head went along
    assert abs(summary["rm"]["reference_mean"]) < 1e-5


def test_figures_follow_from_the_eval_lines(chain):
    _, folder, summary = chain
    for stage in ("pmp", "rm"):
        rows = lines(folder / "run" / stage / "eval.jsonl")
        right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
        assert (summary[stage]["correct"], summary[stage]["pairs"]) == (right, 12)
        assert (summary[stage]["length_baseline"], summary[stage]["majority_baseline"]) == (1.0, 1.0)
        assert set(summary[stage]["by_category"]) == {"meows", "barks", "clucks", "moos"}
    rows = lines(folder / "run" / "ppo" / "eval.jsonl")
    assert len(rows) == 3  # evaluation.limit
    ppo = summary["ppo"]
    assert ppo["judge"] == "reward"  # no gold score outside the embedded world
    assert ppo["reward"] == pytest.approx(sum(row["ppo_reward"] for row in rows) / 3)
    assert sum(ppo[outcome] for outcome in ("win", "tie", "loss")) == 3
    assert sum(ppo[f"{outcome}_sampled"] for outcome in ("win", "tie", "loss")) == 6
    assert all(len(row["sampled"][name]) == 2 for row in rows for name in ("sft", "ppo"))


def test_the_policy_waits_for_the_critic(chain):
    _, folder, _ = chain
    rows = [line for line in lines(folder / "run" / "ppo" / "metrics.jsonl") if "score/mean" in line]
    assert [line["optimizer_steps"] for line in rows] == [2, 4, 6]
    assert [line["lr/policy"] for line in rows] == [0.0, 1e-6, 1e-6]
    assert {line["lr/critic"] for line in rows} == {5e-6}
    assert rows[0]["kl/reply"] == rows[1]["kl/reply"] == 0.0  # collected before the policy's first step
