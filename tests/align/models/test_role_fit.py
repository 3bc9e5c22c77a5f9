"""Which models share a backbone, decided from their folders; and loading those that do."""

import copy
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.models import adapters
from align.models.critic import Critic
from align.models.load import load_causal_lm, load_critic, load_reward_model
from align.models.role_adapters import RoleError
from align.models.role_fit import plan_sharing
from align.models.role_loading import load_roles
from align.recipe.model_section import ModelSection
from align.trainers import sharding
from rollouts.weights import checkpoint_tensors
from tests.align.models import role_folders, roles_case
from tests.tiny_models import byte_tokenizer, save_causal_lm

IDS, MASK = torch.tensor([[5, 9, 200, 31, 7], [80, 81, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TOKENS = byte_tokenizer().get_vocab()


def plan(policy, rewards, critic=None, adapter="lora", tokens=TOKENS, **more):
    rewards = [str(path) for path in rewards]
    start = str(critic or (rewards[0] if rewards else policy))
    return plan_sharing(str(policy), rewards, start, role_folders.section(policy, adapter, **more), tokens)


@pytest.fixture
def base(tmp_path):
    return role_folders.base(tmp_path)


@pytest.fixture
def sft(tmp_path, base):
    return role_folders.policy(tmp_path, base)


@pytest.fixture
def rm(tmp_path, base):
    return role_folders.reward(tmp_path, base)


@pytest.mark.parametrize("four_bit", [False, pytest.param(True, marks=pytest.mark.needs("bitsandbytes"))])
def test_all_adapters_of_one_base(tmp_path, base, four_bit):
    sft = role_folders.policy(tmp_path, base, four_bit=four_bit)
    rm = role_folders.reward(tmp_path, base, four_bit=four_bit)
    adapter = "qlora" if four_bit else "lora"
    found, told = plan(sft, [rm], adapter=adapter), role_folders.section(base, adapter)
    assert (found.base, found.policy, found.rewards) == (str(base), str(sft), (str(rm),))
    roles = load_roles(found, told)
    alone = {
        "policy": load_causal_lm(sft, told),
        "critic": load_critic(rm, told),
        "reward": load_reward_model(rm, told, use="frozen"),
    }
    with torch.no_grad():
        logits = roles.policy(input_ids=IDS, attention_mask=MASK).logits
        assert torch.equal(logits, alone["policy"](input_ids=IDS, attention_mask=MASK).logits)
        assert torch.equal(logits, roles.reference(input_ids=IDS, attention_mask=MASK).logits)
        assert torch.equal(roles.rewards[str(rm)](IDS, MASK), alone["reward"](IDS, MASK))
        assert torch.equal(roles.critic(IDS, MASK), alone["critic"](IDS, MASK)) and not roles.critic(IDS, MASK).any()
        states = [model.states(IDS, MASK) for model in (roles.critic, alone["critic"])]
        assert torch.equal(*states)
    trained = [name for name, p in alone["critic"].named_parameters() if p.requires_grad]
    assert len([p for p in roles.critic.parameters() if p.requires_grad]) == len(trained)
    assert not any(p.requires_grad for p in roles.rewards[str(rm)].parameters())


def test_a_whole_model_with_a_reward_model_trained_on_it_is_its_own_reference(tmp_path, base):
    rm = role_folders.reward(tmp_path, base)
    found = plan(base, [rm])
    assert found.policy is None and found.base == str(base)
    state = torch.get_rng_state()
    one, other = (load_roles(found, role_folders.section(base), seed=seed) for seed in (1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        expected = plain(input_ids=IDS, attention_mask=MASK).logits
        for role in (one.policy, one.reference):
            assert torch.equal(role(input_ids=IDS, attention_mask=MASK).logits, expected)
    first, second = (dict(roles.policy.named_parameters()) for roles in (one, other))
    assert {name.split(".")[-4] for name in first} == {"q_proj", "gate_proj"}
    drawn = [name for name in first if "lora_A" in name]
    assert drawn and not any(torch.equal(first[name], second[name]) for name in drawn)
    one.policy.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["inference_mode"]) == (str(base), 3, True)


def test_without_a_reward_model_the_critic_starts_from_the_policys_adapter(tmp_path, base, sft):
    roles = load_roles(plan(sft, []), role_folders.section(base))
    with torch.no_grad():
        states = roles.critic.states(IDS, MASK)
        whole = roles.policy(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
        assert torch.allclose(states[MASK == 1], whole.hidden_states[-1][MASK == 1], atol=1e-6)
    assert roles.rewards == {} and roles.critic.backbone.backbone.roles == ("policy", "reference", "critic")


def test_a_critic_of_its_own_keeps_its_head(tmp_path, base, sft, rm):
    own = role_folders.critic(tmp_path, base)
    roles = load_roles(plan(sft, [rm], critic=own), role_folders.section(base))
    with torch.no_grad():
        expected = Critic.from_pretrained(own)(IDS, MASK)
        assert torch.equal(roles.critic(IDS, MASK), expected) and expected.abs().max() > 0


def test_without_a_critic_there_is_no_such_role(base, sft, rm):
    found = plan_sharing(str(sft), [str(rm)], None, role_folders.section(sft), TOKENS)
    assert (found.policy, found.critic, found.with_critic) == (str(sft), None, False)
    roles = load_roles(found, role_folders.section(base))
    assert roles.critic is None and roles.policy.backbone.roles == ("policy", "reference", "reward")
    with_one = load_roles(plan(sft, [rm]), role_folders.section(base))
    with torch.no_grad():
        found, expected = (one.policy(input_ids=IDS, attention_mask=MASK).logits for one in (roles, with_one))
    assert torch.equal(found, expected)


def test_two_reward_models_and_a_copy_of_the_base(tmp_path, base, sft):
    copied = tmp_path / "copy"
    shutil.copytree(base, copied)
    rewards = [role_folders.reward(tmp_path, base), role_folders.reward(tmp_path, copied, "other")]
    roles = load_roles(plan(sft, rewards), role_folders.section(base))
    assert set(roles.rewards) == {str(path) for path in rewards}
    assert roles.policy.backbone.roles == ("policy", "reference", "reward", "reward_1", "critic")


def test_gradient_checkpointing_is_the_recipes(base, sft, rm):
    told = role_folders.section(base, gradient_checkpointing=True)
    assert load_roles(plan(sft, [rm]), told).policy.is_gradient_checkpointing
    assert not load_roles(plan(sft, [rm]), role_folders.section(base)).policy.is_gradient_checkpointing


class TestRefused:
    def test_another_base(self, tmp_path, sft):
        other = role_folders.base(tmp_path, "other", seed=5)
        rm = role_folders.reward(tmp_path, other)
        words = rf"reward model at {rm} is an adapter on {other}, while the policy at {sft} stands on {tmp_path}/base$"
        with pytest.raises(RoleError, match=words):
            plan(sft, [rm])

    def test_another_vocabulary(self, tmp_path, sft):
        rm = role_folders.reward(tmp_path, role_folders.base(tmp_path, "other", vocab_size=300))
        with pytest.raises(RoleError, match="with vocabularies of 300 and 259"):
            plan(sft, [rm])

    def test_a_merged_policy_with_a_reward_model_on_what_it_was_before(self, tmp_path, base, rm):
        merged = role_folders.base(tmp_path, "merged", seed=9)
        with pytest.raises(RoleError, match=rf"on {base}, while the policy at {merged} is the whole model {merged}"):
            plan(merged, [rm])

    def test_a_reward_model_trained_on_the_sft_model_while_that_is_an_adapter(self, tmp_path, sft):
        rm = role_folders.reward(tmp_path, role_folders.base(tmp_path, "merged", seed=9))
        with pytest.raises(RoleError, match=r"is an adapter on .*merged, while the policy"):
            plan(sft, [rm])

    def test_a_whole_reward_model(self, tmp_path, base, sft):
        rm = role_folders.whole_reward(tmp_path, base)
        with pytest.raises(RoleError, match=rf"the reward model at {rm} is a whole model, and the policy an adapter"):
            plan(sft, [rm])
        with pytest.raises(RoleError, match="is a whole model"):
            plan(base, [rm])

    def test_a_critic_on_another_base(self, tmp_path, sft, rm):
        critic = role_folders.critic(tmp_path, role_folders.base(tmp_path, "other", seed=5))
        with pytest.raises(RoleError, match=r"the critic at .*critic is an adapter on .*other, while"):
            plan(sft, [rm], critic=critic)
        with pytest.raises(RoleError, match=r"the critic at .*base is a whole model"):
            plan(sft, [rm], critic=tmp_path / "base")

    @pytest.mark.needs("bitsandbytes")
    def test_another_quantisation(self, tmp_path, base, sft):
        rm = role_folders.reward(tmp_path, base, four_bit=True)
        with pytest.raises(RoleError, match=r"base in load_in_4bit=True, quant_type=nf4, .*policy's is in full preci"):
            plan(sft, [rm])
        with pytest.raises(RoleError, match=r"in load_in_4bit=True, .* compute_dtype=float32, the policy's is in full"):
            plan(base, [rm])
        assert plan(base, [rm], adapter="qlora").quantization.load_in_4bit

    def test_a_classifier(self, tmp_path, sft):
        with pytest.raises(RoleError, match="is a classifier, not an adapter with a head of this project"):
            plan(sft, [save_causal_lm(tmp_path / "classifier")])

    def test_a_tokenizer_of_its_own(self, sft, rm):
        with pytest.raises(RoleError, match="has a tokenizer of its own, which is not the policy's"):
            plan(sft, [rm], tokens=TOKENS | {"new": 259})

    def test_more_tokens_than_the_base_has(self, sft):
        with pytest.raises(RoleError, match="has 259 token embeddings, the policy's tokenizer 260"):
            plan(sft, [], tokens=TOKENS | {"new": 259})

    def test_an_adapter_that_is_not_lora(self, tmp_path, base):
        from peft import IA3Config, get_peft_model

        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), IA3Config(target_modules=["k_proj"], feedforward_modules=[])
        )
        model.save_pretrained(tmp_path / "ia3")
        with pytest.raises(RoleError, match=r"ia3 holds an adapter of type .*IA3.*; a shared backbone takes LoRA"):
            load_roles(plan(tmp_path / "ia3", []), role_folders.section(base))


@pytest.mark.parametrize("whole", [["embed_tokens", "lm_head"], pytest.param(["lm_head"], marks=pytest.mark.slow)])
@pytest.mark.parametrize("from_reward", [True, False])
def test_tied_embeddings_that_are_trained_whole_stay_tied_in_every_role(tmp_path, whole, from_reward):
    """As for ChatML's tokens on a small Qwen2.5: shared, averaged and saved as by a model of its own."""
    base = role_folders.base(tmp_path, tie_word_embeddings=True)
    told = ModelSection(path=str(base), adapter="lora", lora={"rank": 3, "modules_to_save": whole})
    start = load_causal_lm(base, told)
    role_folders.saved(roles_case.moved(start, 4), tmp_path / "sft")
    rm = load_reward_model(base, told)
    roles_case.moved(rm.backbone, 5)
    rewards = [str(role_folders.saved(rm, tmp_path / "rm"))]
    critic = rewards[0] if from_reward else str(tmp_path / "sft")
    roles = load_roles(plan_sharing(str(tmp_path / "sft"), rewards, critic, told, TOKENS), told)
    alone = load_causal_lm(tmp_path / "sft", told)
    own_reward, own_critic = load_reward_model(rewards[0], told, use="frozen"), load_critic(critic, told)
    with torch.no_grad():
        for model in (roles.policy, roles.reference):
            assert torch.equal(model(input_ids=IDS, attention_mask=MASK).logits, alone(IDS, MASK).logits)
        assert torch.equal(roles.rewards[rewards[0]](IDS, MASK), own_reward(IDS, MASK))
        found, expected = (one.backbone(IDS, MASK).last_hidden_state for one in (roles.critic, own_critic))
        assert torch.equal(found, expected)
    count = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (roles.policy, alone)]
    assert count[0] == count[1]
    pushed, own = (dict(checkpoint_tensors(model)) for model in (roles.policy, alone))
    assert pushed.keys() == own.keys() and all(torch.equal(pushed[name], own[name]) for name in own)
    written = {"policy": roles.policy, "average": copy.deepcopy(roles.policy), "alone": alone}
    for name, model in written.items():  # as the trainer hands its state over: shared tensors once
        adapters.save_pretrained(model, tmp_path / name, sharding.gathered_state_dict(model))
        again = load_causal_lm(tmp_path / name, told)
        assert torch.equal(again(IDS, MASK).logits, alone(IDS, MASK).logits), name
