"""What a step costs, by hand and by torch's own count of FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

from align.plan import plan_stages
from align.plan.cheaper import halves
from align.plan.cost import PromptGroup, Work, decode_pass, flops, reply_pass, row_pass
from align.plan.models import frozen_model, trained_model
from align.plan.parts import flop
from align.plan.shapes import Shape
from align.plan.show import describe_cost
from align.recipe import load_recipe
from align.recipe.model_section import ModelSection
from align.recipe.ppo_section import PolicyOptim
from tests.commands import ROOT
from tests.tiny_models import qwen2_config

GROUPS = [PromptGroup(3, (2, 2))]
MODEL = ModelSection(path="unused", dtype="float32", mixed_precision="no")
SHAPE = Shape(10, 8, 12, 2, 2, 1, 4, False)  # queries of 8, keys of 4
# a layer: q, o 8 x 8; k, v 8 x 4; gate, up, down 8 x 12
LINEAR, HEAD = 2 * (2 * 64 + 2 * 32 + 3 * 96), 80


def test_passes_over_a_prompt_and_its_two_replies():
    # the prompt: 3 tokens, 1 + 2 + 3 pairs; a reply: 2 tokens that see 3 + 1 and 3 + 2
    assert reply_pass(GROUPS) == Work(7, 6 + 9 + 9, 4)
    assert reply_pass(GROUPS, shared=False) == Work(10, 30, 4)
    # the last token of a reply is drawn and never read
    assert decode_pass(GROUPS) == Work(5, 6 + 4 + 4, 1 + 1 + 1)
    assert decode_pass(GROUPS, shared=False) == Work(8, 12 + 8, 2 + 2)
    assert reply_pass([PromptGroup(1, (1,)), PromptGroup(2, (3, 1))]) == Work(
        2 + 6, (1 + 2) + (3 + 3 + 4 + 5 + 3), 1 + 4
    )
    assert row_pass(5, 4) == Work(20, 50, 20)


def test_flops_of_a_pass_and_of_its_backward_pass():
    work, optim = Work(7, 24, 4), PolicyOptim()
    layers, attention, head = 2 * LINEAR * 7, 4 * 8 * 2 * 24, 2 * HEAD * 4
    policy = trained_model("policy", SHAPE, MODEL, optim)
    assert flops(work, policy) == layers + attention + head
    assert flops(work, policy, trained=True) == 3 * (layers + attention + head)
    critic = trained_model("critic", SHAPE, MODEL, optim, head=False)
    assert flops(work, critic, trained=True) == 3 * (layers + attention)
    assert flops(work, frozen_model("reference", SHAPE, MODEL, head=True)) == layers + attention + head
    again = trained_model("policy", SHAPE, MODEL.model_copy(update={"gradient_checkpointing": True}), optim)
    assert flops(work, again, trained=True) == 3 * (layers + attention + head) + layers + attention
    lora = ModelSection(path="unused", adapter="lora", lora={"rank": 3, "targets": ["q_proj"]})
    adapted, adapter = trained_model("policy", SHAPE, lora, optim), 2 * (2 * 3 * 16) * 7  # of two layers
    assert flops(work, adapted, trained=True) == 2 * (layers + head) + 3 * (attention + adapter)


def test_torch_counts_the_same_forward():
    config = qwen2_config(hidden_size=32)
    model = Qwen2ForCausalLM(config).eval()
    model.set_attn_implementation("eager")  # whose products it knows
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(3, 5, dtype=torch.int64), use_cache=False)
    shape = Shape.of_config(config.to_dict(), "tiny")
    counted_as = Work(15, 3 * 25, 15)  # torch counts keys that a query may not see, too
    more = counter.get_total_flops() - flops(counted_as, frozen_model("model", shape, MODEL, head=True))
    assert more in (0, 80)  # transformers up to 5.16 makes the angles of the positions by a product


def cost_of(*overrides, recipe="qwen_rlhf"):
    recipe = load_recipe(recipe if "/" in recipe else ROOT / f"recipes/{recipe}.yaml", overrides)
    (plan,) = (plan for plan in plan_stages(recipe) if plan.stage == "ppo")
    return recipe, plan.cost


def test_an_iteration_by_phase():
    _, cost = cost_of()
    names = [phase.name for phase in cost.phases]
    assert names[:2] == ["decode", "reward"] and names[-1] == "ptx" and len(set(names)) == len(names) == 8
    by = {phase.name: phase for phase in cost.phases}
    # 256 prompts of 1024 tokens, two replies of 1024 to each; eight rows of 2048 tokens a reply
    assert cost.shared == 256 * 3 * 1024 and cost.unshared == 256 * 4 * 1024
    assert by["reference"].tokens == cost.shared and by["reference"].head_rows == 512 * 1024
    assert by["decode"].tokens == cost.shared - 512 and by["decode"].head_rows == 256 + 512 * 1023
    assert by["ptx"].tokens == by["ptx"].head_rows == 8 * 512 * 2048
    assert by["critic's update"].head_rows == by["reward"].head_rows == 0
    assert by["old values"].flops < by["reference"].flops < by["policy's update"].flops < by["ptx"].flops
    # of the first micro-batch, two replies to each of two prompts, the pass for old log-probabilities is not made again
    taken_up = 2 * 3 * 1024
    assert by["policy's update"].tokens == cost.shared - taken_up and by["critic's update"].tokens == cost.shared
    assert by["policy's update"].head_rows == 512 * 1024 - 2 * 2 * 1024
    _, twice = cost_of("ppo.num_ppo_epochs=2")
    assert {phase.name: phase for phase in twice.phases}["policy's update"].tokens == 2 * cost.shared - taken_up
    for change, taken_up in (("ppo.micro_batch_size=null", 2 * 3 * 1024), ("ppo.offload=[reference]", 0)):
        _, other = cost_of(change)
        assert {phase.name: phase for phase in other.phases}["policy's update"].tokens == cost.shared - taken_up
    _, alone = cost_of("ppo.advantage=rloo", "ppo.critic_from=null", "ppo.critic_warmup_steps=0")
    assert not [phase for phase in alone.phases if "value" in phase.name or "critic" in phase.name]
    one_step = ("ppo.num_mini_batches=1", "ppo.critic_warmup_steps=0")
    for changes, passes in ((one_step, 1), ((*one_step, "ppo.kl_in=loss"), 0), (("ppo.kl_in=loss",), 1)):
        cost = cost_of(*changes)[1]
        assert [phase.name for phase in cost.phases].count("old log-probabilities") == passes
        assert {phase.name: phase.tokens for phase in cost.phases}["policy's update"] == cost.shared - 2 * 3072 * passes


def test_what_halves_it_does():
    recipe, cost = cost_of()
    change = halves(recipe, cost)
    key, _, ratio = change.partition("=")
    assert key == "ppo.ptx_ratio"
    assert cost_of(change)[1].flops <= 0.5 * cost.flops < cost_of(f"{key}={int(ratio) + 1}")[1].flops
    recipe, cost = cost_of("ppo.ptx_coef=0")
    change = halves(recipe, cost)
    assert change.startswith("ppo.rollout") and cost_of("ppo.ptx_coef=0", change)[1].flops <= 0.505 * cost.flops


def test_an_evaluation_counts_by_how_often_it_is():
    _, without = cost_of()
    some = ("ppo.eval_data=[text/prompts.jsonl]", "ppo.evaluation.limit=10")
    _, often = cost_of(*some, "ppo.evaluation.every_steps=1")
    _, rarely = cost_of(*some, "ppo.evaluation.every_steps=5")
    one, fifth = (cost.flops - without.flops for cost in (often, rarely))
    assert one == pytest.approx(5 * fifth) and one > 0
    (phase,) = (phase for phase in often.phases if phase.name == "evaluation")
    # a sample and a greedy reply: decoded, then asked of policy, reference and reward model
    assert phase.tokens == 10 * 2 * (2047 + 3 * 2048)


def test_words():
    recipe = load_recipe(ROOT / "recipes/qwen_rlhf.yaml", [])
    text = describe_cost(recipe, plan_stages(recipe))
    cost = cost_of()[1]
    rest = sum(phase.flops for phase in cost.phases if phase.name != "ptx")
    times = (cost.flops - rest) / rest
    assert f"ptx is {cost.ptx_share:.0%} of the iteration, {times:.2g} times everything else together" in text
    assert "computes 786,432 tokens, each prompt once, in place of 1,048,576" in text
    assert text.splitlines()[-1] == "ppo.ptx_ratio=2 would halve the iteration"
    assert [flop(n) for n in (7, 1234, 12_340_000, 9.99e12, 3e18)] == ["7", "1.23 k", "12.3 M", "9.99 T", "3,000 P"]
