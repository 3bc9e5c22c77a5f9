import threading

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModel, AutoModelForCausalLM

from align.models.critic import Critic
from align.models.role_adapters import Adapter, RoleError
from align.models.roles import SharedBackbone
from reward.model import RewardModel
from tests.align.models import roles_case
from tests.tiny_models import ragged_ids

IDS, MASK = torch.tensor([[5, 9, 200, 31, 7], [80, 81, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def outputs(models):
    with torch.no_grad():
        lm = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
        found = {name: models[name](**lm).logits for name in ("policy", "reference")}
        return found | {name: models[name](IDS, MASK) for name in ("critic", "reward")}


@pytest.fixture
def separate():
    return roles_case.separate()


@pytest.fixture
def models(separate):
    return roles_case.shared(separate)


def test_roles_compute_what_separate_models_compute(separate, models):
    alone, together = outputs(separate), outputs(models)
    for name, expected in alone.items():
        assert torch.equal(together[name], expected), name
    assert torch.equal(together["policy"], together["reference"])
    with torch.no_grad():
        plain = roles_case.base()(input_ids=IDS, attention_mask=MASK, use_cache=False).logits
    assert (together["policy"] - plain).abs().max() > 0.1
    with models["policy"].backbone.role("reward"):  # the reward's adapter under the policy's head: another model
        other = models["policy"].backbone.causal_lm(input_ids=IDS, attention_mask=MASK, use_cache=False).logits
    assert (other - plain).abs().max() > 0.1 and (other - together["policy"]).abs().max() > 0.1


def test_a_view_holds_its_role_alone_and_nothing_is_held_twice(models):
    backbone = models["policy"].backbone
    held = {name: {id(p) for p in model.parameters()} for name, model in models.items()}
    assert all(held.values()) and sum(map(len, held.values())) == len(set().union(*held.values()))
    assert all(".policy." in name for name in dict(models["policy"].named_parameters()))
    whole = dict(backbone.model.named_parameters())
    assert all(whole[name] is parameter for name, parameter in models["policy"].named_parameters())
    trained = {id(p) for p in backbone.model.parameters() if p.requires_grad}
    assert trained == {id(p) for name in ("policy", "critic") for p in models[name].parameters()} - {
        id(models["critic"].head.weight)
    }


def test_switching_changes_neither_weights_nor_what_is_trained(models):
    backbone = models["policy"].backbone
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in backbone.model.named_parameters()}
    outputs(models)
    for role in backbone.roles:
        with backbone.role(role):
            pass
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]


def test_misuse_is_an_error_and_leaves_no_role_behind(models):
    backbone = models["policy"].backbone
    with pytest.raises(RoleError, match="compute inside"):
        backbone.causal_lm(input_ids=IDS)
    with pytest.raises(RoleError, match="compute inside"):
        backbone.body(input_ids=IDS)
    with pytest.raises(RoleError, match="no role 'judge'; it has policy, reference, reward, critic"):
        backbone.causal("judge")
    with backbone.role("policy"):
        with backbone.role("policy"):
            models["policy"](input_ids=IDS)
        with pytest.raises(RoleError, match="'critic' was asked for inside the role 'policy'"):
            models["critic"](IDS, MASK)
        said = []

        def elsewhere():
            try:
                models["policy"](input_ids=IDS)
            except RoleError as error:
                said.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert said == ["a thread asks for the role 'policy' while another computes as 'policy'"]
    with pytest.raises(ZeroDivisionError), backbone.role("policy"):
        raise ZeroDivisionError
    models["critic"](IDS, MASK)  # nothing is left of all this


def test_the_base_alone_is_the_reference_of_a_new_adapter():
    backbone = SharedBackbone(roles_case.base(), {"policy": Adapter(roles_case.config()), "reference": None})
    policy, reference = backbone.causal("policy"), backbone.causal("reference")
    with torch.no_grad():
        found = [model(input_ids=IDS, attention_mask=MASK).logits for model in (policy, reference)]
        plain = roles_case.base()(input_ids=IDS, attention_mask=MASK).logits
        assert torch.equal(found[0], plain) and torch.equal(found[1], plain)
        roles_case.moved(policy, 3)
        assert torch.equal(reference(input_ids=IDS, attention_mask=MASK).logits, plain)
        assert not torch.equal(policy(input_ids=IDS, attention_mask=MASK).logits, plain)
    assert list(reference.parameters()) == [] and reference.dtype == torch.float32
    with pytest.raises(RoleError, match="no adapter to save"):
        reference.save_pretrained("unused")


def test_modes_are_each_roles_own(models):
    backbone = models["policy"].backbone
    seen = []
    backbone.body.layers[0].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    models["policy"].train(), models["reference"].eval(), models["critic"].train(), models["reward"].eval()
    outputs(models)
    models["critic"].eval()
    outputs(models)
    assert seen == [True, False, True, False, True, False, False, False]
    assert not backbone.model.training


@pytest.mark.parametrize("inside", [False, True])
def test_checkpointed_layers_are_computed_again_as_the_same_role(separate, models, inside):
    """Backward comes after the role was left, even after another was taken, and gradients are those without."""
    lm = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
    backbone, calls = models["policy"].backbone, []
    models["policy"].gradient_checkpointing_enable()
    for name in ("policy", "critic"):
        models[name].train()
        separate[name].train()
    backbone.body.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(backbone._current))
    policy = models["policy"](**lm).logits.square().mean()
    value = models["critic"](IDS, MASK).square().mean()
    with torch.no_grad():
        models["reward"](IDS, MASK)
    with backbone.role("critic"):
        (value if inside else policy).backward(retain_graph=True)
    (policy if inside else value).backward()
    assert calls == ["policy", "critic", "reward", *(("critic", "policy") if inside else ("policy", "critic"))]
    separate["policy"](**lm).logits.square().mean().backward()
    separate["critic"](IDS, MASK).square().mean().backward()
    for name in ("policy", "critic"):
        expected = [p.grad for p in separate[name].parameters() if p.requires_grad]
        found = [p.grad for p in models[name].parameters() if p.requires_grad]
        assert all(e.abs().max() > 0 for e in expected) and len(expected) == len(found)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert not backbone.model.training
    with pytest.raises(RoleError, match="use_reentrant=False"):
        backbone.gradient_checkpointing_enable({"use_reentrant": True})


def test_saved_roles_are_what_peft_and_the_reward_model_load(tmp_path, separate, models):
    roles_case.base().save_pretrained(tmp_path / "base")
    backbone = models["policy"].backbone
    for config in backbone.model.peft_config.values():
        config.base_model_name_or_path = str(tmp_path / "base")
    models["policy"].save_pretrained(tmp_path / "policy")
    models["critic"].save_pretrained(tmp_path / "critic")
    models["reward"].save_pretrained(tmp_path / "reward")
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "policy")
    body = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "critic")
    found = {"policy": policy, "reference": policy, "critic": Critic.from_pretrained(tmp_path / "critic")}
    found["reward"] = RewardModel.from_pretrained(tmp_path / "reward")
    expected = outputs(separate)
    assert all(torch.equal(logits, expected[name]) for name, logits in outputs(found).items())
    assert set(body.peft_config["default"].target_modules) == {"q_proj", "o_proj", "up_proj"}
    again = Adapter.read(tmp_path / "critic", of_body=True)
    assert again.tensors.keys() == Adapter.of(separate["critic"].backbone).tensors.keys()


def test_a_regular_expression_names_layers_of_the_body_and_comes_back_as_it_was(tmp_path):
    pattern = r"layers\.1\.self_attn\.(q|k)_proj"
    body = roles_case.moved(get_peft_model(roles_case.base().base_model, roles_case.config(target_modules=pattern)), 4)
    critic = Critic(body, roles_case.head(1))
    backbone = SharedBackbone(
        roles_case.base(), {"policy": Adapter(roles_case.config()), "critic": Adapter.of(body, of_body=True)}
    )
    shared = Critic(backbone.headless("critic"), roles_case.head(1))
    assert torch.equal(shared(IDS, MASK), critic(IDS, MASK))
    shared.backbone.save_pretrained(tmp_path)
    assert Adapter.read(tmp_path).config.target_modules == pattern


def test_an_adapter_that_does_not_fit_is_refused_by_name(separate):
    parts = roles_case.adapters(separate)
    wide = roles_case.base(intermediate_size=32)
    with pytest.raises(RoleError, match=r"policy does not fit the shared base: .*down_proj.* is \(4, 24\), not"):
        SharedBackbone(wide, parts)
    with pytest.raises(RoleError, match="has no place on the base"):
        SharedBackbone(roles_case.base(num_hidden_layers=1), parts)
    short = Adapter(parts["policy"].config, dict(list(parts["policy"].tensors.items())[1:]))
    with pytest.raises(RoleError, match="is missing in it"):
        SharedBackbone(roles_case.base(), {"policy": short})
    with pytest.raises(RoleError, match="trains biases"):
        SharedBackbone(roles_case.base(), {"policy": Adapter(roles_case.config(bias="all"))})


def test_a_critic_starts_from_the_policys_adapter_without_its_head(separate):
    config = roles_case.config(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    sft = Adapter.of(roles_case.moved(get_peft_model(roles_case.base(), config), 5))
    backbone = SharedBackbone(roles_case.base(), {"policy": sft, "critic": sft.for_body("model.")})
    states = backbone.headless("critic")(input_ids=IDS, attention_mask=MASK).last_hidden_state
    expected = backbone.causal("policy")(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
    assert torch.equal(states, expected.hidden_states[-1])
    assert "lm_head" in str(list(backbone.parameters_of("policy"))) and "lm_head" not in str(
        list(backbone.parameters_of("critic"))
    )


def test_generation_is_the_roles(models, separate):
    rows = torch.tensor([ragged_ids((6,))[0]])
    options = {"max_new_tokens": 8, "do_sample": False}
    for name in ("policy", "reference"):
        assert torch.equal(models[name].generate(rows, **options), separate[name].generate(input_ids=rows, **options))


def test_replies_are_sampled_as_the_role(models, separate, caplog):
    from rollouts.hf import HFEngine
    from rollouts.protocol import SamplingParams

    prompts, params = [[5, 9, 200], [80, 81]], SamplingParams(n=2, max_new_tokens=8, seed=1)
    with caplog.at_level("INFO", logger="rollouts.hf"):
        found = HFEngine(models["policy"], 0).generate(prompts, params)
    assert not caplog.records  # a role goes through the decode loop too
    assert [one.token_ids for one in found] == [
        one.token_ids for one in HFEngine(separate["policy"], 0).generate(prompts, params)
    ]


def test_tools_of_peft_find_the_policys_adapter_active_between_two_passes(models, separate):
    view, backbone = models["policy"], models["policy"].backbone
    outputs(models)
    named = get_peft_model_state_dict(view.peft_model, state_dict=view.state_dict(), adapter_name="policy")
    expected = get_peft_model_state_dict(separate["policy"])
    assert named.keys() == expected.keys() and all(torch.equal(named[name], expected[name]) for name in named)
    assert view.peft_model.active_adapters == view.active_adapters == ["policy"] and view.active_peft_config.r == 4
    layers = [m for m in view.get_base_model().modules() if hasattr(m, "merge_adapter") or hasattr(m, "lora_A")]
    assert layers and all(layer.active_adapters == ["policy"] and not layer.disable_adapters for layer in layers)
    batch = {"input_ids": IDS, "attention_mask": MASK}
    with torch.no_grad():
        before = view(**batch).logits
        backbone.model.merge_adapter()  # as an engine is brought whole weights
        with backbone.role("policy"):
            merged = {name: p.clone() for name, p in backbone.causal_lm.named_parameters() if "base_layer" in name}
        backbone.model.unmerge_adapter()
    assert any(not torch.equal(p, merged[n]) for n, p in backbone.causal_lm.named_parameters() if n in merged)
    assert torch.allclose(view(**batch).logits, before, atol=1e-5)


def test_the_second_pass_may_run_on_another_thread(separate, models):
    """As on accelerators, where a thread of autograd's computes while the one that called backward waits."""
    lm = {"input_ids": IDS, "attention_mask": MASK, "use_cache": False}
    for parts in (separate, models):
        parts["policy"].gradient_checkpointing_enable({"use_reentrant": False})
        parts["policy"].train()
    loss = models["policy"](**lm).logits.square().mean()
    backbone = models["policy"].backbone
    with backbone.role("critic"):
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        assert (backbone._current, backbone._owner) == ("critic", threading.get_ident())
    separate["policy"](**lm).logits.square().mean().backward()
    expected = [p.grad for p in separate["policy"].parameters() if p.requires_grad]
    assert all(torch.equal(p.grad, grad) for p, grad in zip(models["policy"].parameters(), expected, strict=True))
    assert (backbone._current, backbone._owner) == (None, None)


@pytest.mark.gpu
def test_roles_move_to_a_gpu_together_and_are_checkpointed_there(separate, models):
    models["policy"].gradient_checkpointing_enable()
    for name in ("reference", "policy", "critic", "reward"):
        assert models[name].to("cuda") is models[name]
        separate[name].to("cuda")
    batch = {"input_ids": IDS.cuda(), "attention_mask": MASK.cuda(), "use_cache": False}
    models["policy"].train()
    found, expected = (parts["policy"](**batch).logits.square().mean() for parts in (models, separate))
    models["critic"](IDS.cuda(), MASK.cuda())
    for loss in (found, expected):
        loss.backward()
    own = [p.grad for p in separate["policy"].parameters() if p.requires_grad]
    pairs = zip((p.grad for p in models["policy"].parameters()), own, strict=True)
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in pairs)
    whole = {id(p) for p in models["policy"].peft_model.parameters()}
    assert all(p.is_cuda and id(p) in whole for p in models["policy"].parameters())
