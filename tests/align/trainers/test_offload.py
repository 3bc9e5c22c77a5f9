"""Idle parts in the host's memory. Without an accelerator the host is played by numbers with all bits turned: whatever
computes with a part outside its `with`, or is not put back bit for bit, trains other weights."""

import gc
import logging

import pytest
import torch
from accelerate import Accelerator

from align.models.load import load_causal_lm
from align.recipe import load_recipe
from align.recipe.errors import RecipeError
from align.recipe.model_section import ModelSection
from align.runs.errors import LaunchError
from align.trainers import offload
from align.trainers.offload import Offload, Resting, Shelf, reward_models
from data_formats.errors import AlignError
from reward.combined import CombinedReward, Part
from reward.model import RewardModel
from reward.sources import FunctionReward, ModelReward
from tests.align.models.roles_case import separate, shared
from tests.align.trainers.ppo_case import TOKENIZER, policy, prompts, trainer, vowels
from tests.tiny_models import save_causal_lm

ALL = ("reference", "reward", "optimizer")


def turned(tensor):
    return (tensor.view(torch.int32) ^ -1).view(torch.float32) if tensor.dtype == torch.float32 else tensor


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(offload, "has_own_memory", lambda device: True)
    monkeypatch.setattr(Shelf, "up", lambda self, tensor: turned(tensor))
    monkeypatch.setattr(Shelf, "down", lambda self, tensor: turned(tensor))


def judge(seed=5, name="model"):
    torch.manual_seed(seed)
    model = RewardModel(policy(seed).model)
    torch.nn.init.normal_(model.head.weight)
    return ModelReward(model.to(Accelerator().device), TOKENIZER, name=name)


def train(folder, parts, steps=None, resume=None, **options):
    reward = CombinedReward([Part(judge()), Part(FunctionReward(vowels, "vowels"), 0.1)])
    options = {"evaluation": {"every_steps": 1}, "gold": judge(6, "gold"), "save_steps": 1} | options
    made = trainer(folder, reward=reward, offload=parts, eval_prompts=prompts(2), seed=3, **options)
    if steps is not None:
        made.args.max_steps = steps
    made.train(resume_from_checkpoint=resume)
    return made


def weights(made):
    return {
        f"{name} {key}": tensor.clone()
        for name in ("policy", "critic")
        for key, tensor in getattr(made, name).raw.state_dict().items()
    }


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def figures(made):
    log = made.state.log_history
    return [{k: v for k, v in line.items() if not k.startswith(("seconds", "tokens_per", "memory"))} for line in log]


def test_every_pass_and_step_finds_its_part_and_training_is_the_same(tmp_path, stand_in):
    plain = train(tmp_path / "plain", ())
    waiting = train(tmp_path / "waiting", ALL)
    assert_equal(weights(waiting), weights(plain))
    assert figures(waiting) == figures(plain)
    assert any("eval/gold" in line for line in figures(plain))
    states = [
        (mine[name], theirs[name])
        for role in ("policy", "critic")
        for mine, theirs in zip(
            getattr(waiting, role).optimizer.state.values(), getattr(plain, role).optimizer.state.values(), strict=True
        )
        for name in ("exp_avg", "exp_avg_sq")
    ]
    assert len(states) > 20 and all(torch.equal(turned(mine), theirs) for mine, theirs in states)  # all are away
    key = "model.embed_tokens.weight"
    assert torch.equal(turned(waiting.reference.state_dict()[key]), plain.reference.state_dict()[key])


@pytest.mark.parametrize(
    "left_out", ["reference", *(pytest.param(part, marks=pytest.mark.slow) for part in ("reward", "moments"))]
)
def test_a_part_that_is_not_brought_back_would_be_seen(tmp_path, stand_in, monkeypatch, left_out):
    plain = train(tmp_path / "plain", ())
    if left_out == "moments":
        monkeypatch.setattr(offload.WaitingMoments, "__enter__", lambda self: None)
    else:
        here = Offload.here
        monkeypatch.setattr(Offload, "here", lambda self, part: here(self, "" if part == left_out else part))
    try:
        broken = weights(train(tmp_path / "broken", ALL, guards={"non_finite": "skip"}))
    except AlignError:
        return  # numbers with turned bits may be no numbers
    assert any(not torch.equal(tensor, weights(plain)[name]) for name, tensor in broken.items())


@pytest.mark.slow
def test_on_a_cpu_it_says_so_and_checkpoints_and_resume_are_bit_for_bit_the_same(tmp_path, caplog):
    plain = train(tmp_path / "plain", ())
    with caplog.at_level(logging.INFO, "align"):
        whole = train(tmp_path / "whole", ALL)
    assert sum("ppo.offload: this run computes on the CPU" in line for line in caplog.messages) == 1
    assert_equal(weights(whole), weights(plain))
    resumed = train(tmp_path / "again", ALL, resume=tmp_path / "whole" / "checkpoints" / "step-1")
    assert_equal(weights(resumed), weights(plain))


@pytest.mark.slow
def test_a_resumed_runs_moments_wait_too(tmp_path, stand_in):
    """As a checkpoint of an accelerator holds them: by value."""
    expected = weights(train(tmp_path / "plain", ()))
    resumed = train(tmp_path / "again", ALL, resume=tmp_path / "plain" / "checkpoints" / "step-1")
    assert_equal(weights(resumed), expected)


def test_entered_twice_it_leaves_once(stand_in):
    module = torch.nn.Linear(2, 2)
    was = module.weight.data.clone()
    resting = Resting(module, Shelf(torch.device("cpu")))
    assert not torch.equal(module.weight, was)
    with resting:
        with resting:
            assert torch.equal(module.weight, was)
        assert torch.equal(module.weight, was)
    assert not torch.equal(module.weight, was)


@pytest.mark.needs("bitsandbytes")
def test_weights_in_4_bits_rest_too(tmp_path, stand_in):
    base = save_causal_lm(tmp_path, hidden_size=64, intermediate_size=64)
    told = {"path": str(base), "adapter": "qlora", "quantization": {"compute_dtype": "float32"}}
    model = load_causal_lm(base, ModelSection.model_validate(told), use="frozen")
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        resting = Resting(model, Shelf(torch.device("cpu")))
        assert not torch.equal(model(input_ids=ids).logits, expected)
        with resting:
            assert torch.equal(model(input_ids=ids).logits, expected)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


def test_models_are_found_in_combined_rewards_once_each():
    one, two = judge(1, "one"), judge(2, "two")
    both = CombinedReward([Part(one), Part(two), Part(FunctionReward(vowels))])
    assert reward_models(both, one, None) == [one.model, two.model]
    assert reward_models(FunctionReward(vowels)) == []


def test_fsdp_is_refused_and_so_are_roles_of_one_backbone(stand_in):
    class Sharded:
        is_fsdp2, device = True, torch.device("cpu")

    with pytest.raises(LaunchError, match="fsdp_offload_params"):
        Offload(ALL, Sharded())
    Offload((), Sharded())
    role = shared(separate())["reference"]
    with pytest.raises(LaunchError, match="the reference is a role of the policy's own backbone"):
        Offload(ALL, Accelerator()).rest("reference", role)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ppo.offload=[reference,reference]"], "ppo.offload: names a part twice"),
        (["ppo.offload=[critic]"], "ppo.offload"),
        (["ppo.offload=[optimizer]", "ppo.critic.optimizer=paged_adamw"], r"critic\.optimizer=paged_adamw give way"),
        (
            ["ppo.offload=[reference,reward,optimizer]", "model.adapter=lora"],
            "ppo.offload: reference and reward may be roles of the policy's own backbone",
        ),
    ],
)
def test_recipes_that_cannot_be_are_told(words, sentence):
    with pytest.raises(RecipeError, match=sentence):
        load_recipe("qwen_rlhf", words)


def test_recipes_that_can_be():
    for words in (["model.adapter=lora", "ppo.shared_backbone=false"], []):
        assert load_recipe("qwen_rlhf", [*words, f"ppo.offload=[{','.join(ALL)}]"]).ppo.offload == ALL
    assert load_recipe("qwen_rlhf", ["model.adapter=lora", "ppo.offload=[optimizer]"]).ppo.offload == ("optimizer",)


@pytest.mark.gpu
@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_on_a_gpu_the_same_weights_with_less_memory(tmp_path, optimizer):
    found = {}
    for parts in ((), ALL):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        options = {role: {"optimizer": optimizer, "learning_rate": 1e-3} for role in ("policy", "critic")}
        made = train(tmp_path / str(len(parts)), parts, **options)
        held, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
        found[parts] = ({name: tensor.cpu() for name, tensor in weights(made).items()}, held, peak)
        frozen = sum(p.nbytes for model in (made.reference, *reward_models(made.reward)) for p in model.parameters())
        del made
        gc.collect()
    for name, tensor in found[()][0].items():
        torch.testing.assert_close(found[ALL][0][name], tensor, rtol=1e-5, atol=1e-7, msg=name)
    assert found[()][1] - found[ALL][1] > frozen and found[ALL][2] <= found[()][2]
