"""What waits in the host's memory is in no moment in which it is idle; sums by hand on a 7B chain in full."""

import pytest

from align.plan import card, plan_stages, propose
from align.plan.count import count
from align.plan.propose import alone
from align.plan.shapes import shipped_shapes
from align.recipe import load_recipe

SEVEN = count(shipped_shapes()["Qwen2.5-7B"])
CHEAPER = ["ppo.micro_batch_size=1", "ppo.rollout.batch_size=1"]
ORIGINS = [f"ppo.{key}=Qwen/Qwen2.5-7B" for key in ("init_from", "reward_from", "critic_from")]
ALL = "ppo.offload=[reference,reward,optimizer]"


def moments(*words, device="gpu"):
    return {one.name: one for one in plan_stages(load_recipe("qwen_rlhf", words), device=device)[-1].moments}


def held(moment, kind, role):
    return sum(part.bytes for part in moment.parts if (part.kind, part.role) == (kind, role))


def test_each_part_is_there_for_its_own_work_alone():
    before, after = moments(), moments(ALL)
    reference, reward = 4 * SEVEN.whole, 4 * SEVEN.body
    policy, critic = 8 * SEVEN.whole, 8 * SEVEN.body
    gone = {name: before[name].bytes - one.bytes for name, one in after.items() if name in before}
    for name, less in gone.items():
        everything = reference + reward + policy + critic
        busy = reward if "scoring" in name else reference if "passes" in name or "KL" in name else 0
        assert less == everything - busy, name
    assert {"reward: scoring", "reference: passes", "policy: sampling, last token"} <= set(gone)
    assert "policy: backward pass begins" in gone
    step, whole = after["policy: optimizer step"], before["optimizer step"]
    assert whole.bytes - step.bytes == reference + reward + critic
    assert whole.bytes - after["critic: optimizer step"].bytes == reference + reward + policy
    assert held(step, "gradients", "critic") == 4 * SEVEN.body  # those of both wait for the step


@pytest.mark.parametrize("part", ["reference", "reward"])
def test_parts_are_named_one_by_one(part):
    before, after = moments(), moments(f"ppo.offload=[{part}]")
    name = "policy: backward pass begins"
    assert before[name].bytes - after[name].bytes == held(before[name], "weights", part) > 0
    assert before.keys() == after.keys()


def test_a_cpu_has_no_other_memory():
    assert moments(ALL, device="cpu") == moments(device="cpu")


def test_gold_reward_and_judge_wait_while_the_reward_judges():
    gold = ["ppo.gold_reward=[{kind: model, model_from: Qwen/Qwen2.5-7B}]", "ppo.eval_data=[{path: prompts.jsonl}]"]
    gold.append("ppo.judge={kind: model, model_from: Qwen/Qwen2.5-7B}")
    found = moments(*gold, "ppo.offload=[reward]")
    assert held(found["judge: scoring"], "weights", "judge") == 4 * SEVEN.body
    assert held(found["judge: scoring"], "weights", "gold_reward.0") == 0
    assert held(found["gold_reward.0: scoring"], "weights", "gold_reward.0") == 4 * SEVEN.body
    assert held(found["gold_reward.0: scoring"], "weights", "reward") == 0
    assert held(found["reward: scoring"], "weights", "gold_reward.0") == 0


def test_it_is_proposed_where_it_makes_the_recipe_fit():
    recipe = load_recipe("qwen_rlhf", [f"{stage}=null" for stage in ("base", "sft", "pmp", "rm")] + ORIGINS)
    plan = plan_stages(recipe)[-1]
    limit = plan_stages(load_recipe("qwen_rlhf", [ALL, *CHEAPER]))[-1].peak.bytes
    assert limit < plan.peak.bytes
    found = propose(recipe, limit)
    assert ALL in found.changes and found.peak <= limit
    assert not any(word.startswith("model.adapter") for word in found.changes)


def test_models_that_become_roles_of_one_backbone_are_offloaded_no_more():
    recipe = load_recipe("qwen_rlhf", [ALL])
    found = propose(recipe, card.usable(card.read_size("24GB")))
    assert any(word.startswith("model.adapter=") for word in found.changes)
    assert "ppo.offload=[optimizer]" in found.changes


def test_without_a_critic_nothing_of_one_is_planned():
    """All that is missing is the critic's; what is left is as with one."""
    with_one = load_recipe("qwen_rlhf", ["ppo.critic_warmup_steps=0"])
    without = load_recipe("qwen_rlhf", ["ppo.critic_warmup_steps=0", "ppo.advantage=rloo"])
    for words in ((), (ALL,)):
        changes = ["ppo.critic_warmup_steps=0", *words]
        before, after = moments(*changes), moments(*changes, "ppo.advantage=rloo")
        assert {name for name in before if name.startswith("critic")} == before.keys() - after.keys()
        for name, one in after.items():
            assert not any(part.role == "critic" for part in one.parts)
            assert set(one.parts) == {part for part in before[name].parts if part.role != "critic"}
    proposals = {change for one in alone(without, plan_stages(without)[-1]) for change in one.changes}
    assert not any("critic" in change for change in proposals) and "ppo.policy.optimizer=adamw_8bit" in proposals
    assert plan_stages(without)[-1].peak.bytes < plan_stages(with_one)[-1].peak.bytes
