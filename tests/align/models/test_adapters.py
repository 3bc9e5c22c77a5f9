"""Adapters on plain and on 4-bit weights: what is trained, what is saved, what comes back."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from align.models import adapters
from align.models.load import load_causal_lm, load_critic, load_reward_model
from align.recipe import RecipeError
from align.recipe.fields import OptimSection
from align.recipe.model_section import ModelSection
from align.runtime import packages
from align.runtime.errors import MissingFileError, MissingPackageError
from align.trainers.optimization import TrainedModel
from reward.checkpointing import is_checkpointing
from reward.errors import ModelFileError
from tests.tiny_models import save_causal_lm

IDS = torch.arange(3, 27).view(2, 12)
MASK = torch.ones_like(IDS)
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=64, initializer_range=0.1)


ADAPTERS = ["lora", pytest.param("qlora", marks=pytest.mark.needs("bitsandbytes"))]


def section(base, adapter="lora", **changes):
    lora = {"rank": 4, "alpha": 8} | changes.pop("lora", {})
    if adapter == "qlora":
        changes = {"quantization": {"compute_dtype": "float32"}} | changes
    return ModelSection.model_validate({"path": str(base), "adapter": adapter, "lora": lora} | changes)


def stir(model, seed=1):
    """Give the adapter an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, attention_mask=MASK).logits


def gradients(model):
    model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_only_the_adapter_is_trained(base, adapter):
    model = load_causal_lm(base, section(base, adapter), seed=3)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        f"base_model.model.model.layers.{layer}.{part}.{name}.lora_{side}.default.weight"
        for layer in (0, 1)
        for part, names in (("self_attn", LINEAR[:4]), ("mlp", LINEAR[4:]))
        for name in names
        for side in "AB"
    }
    assert trained == expected
    shapes = {"q": (64, 64), "k": (64, 32), "v": (64, 32), "o": (64, 64), "gate": (64, 64), "up": (64, 64)}
    by_hand = 2 * 4 * (sum(map(sum, shapes.values())) + 64 + 64)  # layers x rank x (in + out), down_proj last
    whole = AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert adapters.trained_share(model) == (by_hand, whole + by_hand)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    critic, reward = (load(base, section(base, adapter)) for load in (load_critic, load_reward_model))
    for headed in (critic, reward):
        names = [name for name, p in headed.named_parameters() if p.requires_grad]
        assert len(names) == len(expected) + 1 and "head.weight" in names


def test_a_new_adapter_changes_nothing_and_is_drawn_by_its_seed(base):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (load_causal_lm(base, section(base), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(logits(first), logits(AutoModelForCausalLM.from_pretrained(base)), rtol=0, atol=0)
    a, b, c = ([p for name, p in m.named_parameters() if "lora_A" in name] for m in (first, again, other))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}, {"targets": ["q_proj", "v_proj"]}])
def test_gradients_equal_those_of_peft_alone(base, options):
    ours = stir(load_causal_lm(base, section(base, lora=options)))
    reference = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=list(options.get("targets", LINEAR)),
            use_rslora=options.get("rslora", False),
            use_dora=options.get("dora", False),
            task_type="CAUSAL_LM",
        ),
    )
    weights = {name: p for name, p in ours.state_dict().items() if "lora_" in name}
    assert not reference.load_state_dict(weights, strict=False).unexpected_keys
    found, expected = gradients(ours), gradients(reference)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-7)
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_gradient_checkpointing_gives_the_same_gradients(base, adapter):
    plain = stir(load_causal_lm(base, section(base, adapter)))
    thrifty = stir(load_causal_lm(base, section(base, adapter, gradient_checkpointing=True)))
    assert is_checkpointing(thrifty)
    expected, found = gradients(plain.train()), gradients(thrifty.train())
    assert found.keys() == expected.keys() and len(found) == 28
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("bias", [True, False])
def test_a_forward_without_gradients_takes_no_gradients_from_4bit_weights(tmp_path, bias):
    """bitsandbytes would repack the weights there on CPUs with avx512_bf16; the reference never evaluates."""
    base = save_causal_lm(tmp_path, hidden_size=64, intermediate_size=64)
    options = section(base, "qlora", quantization={"compute_dtype": "bfloat16"}, dtype="bfloat16")

    def load():
        model = stir(load_causal_lm(base, options))
        for name, module in model.named_modules():
            if not bias and name.endswith("base_layer"):
                module.bias = None
        return model

    expected = gradients(load().train())
    model = load()
    logits(model.eval())
    assert not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in four_bit(model))
    found = gradients(model.train())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)
    for kind in (load_reward_model, load_critic):
        assert not any(m.support_avx512bf16_for_cpu for m in four_bit(kind(base, options)))


def four_bit(model):
    import bitsandbytes

    found = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(found) == 14
    return found


@pytest.mark.needs("bitsandbytes")
def test_frozen_weights_keep_their_dtype(base):
    model = load_causal_lm(base, section(base, "qlora", dtype="bfloat16"))
    names = ("embed_tokens", "lm_head", "norm")
    kept = {p.dtype for name, p in model.named_parameters() if any(part in name for part in names)}
    assert kept == {torch.bfloat16}
    assert model.config.quantization_config.bnb_4bit_quant_type == "nf4"


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_saved_in_pefts_format_and_loaded_again(base, tmp_path, adapter):
    options = section(base, adapter)
    model = stir(load_causal_lm(base, options))
    adapters.save_pretrained(model, tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()} - {"README.md"}
    quantised = {"base_quantization.json"} if adapter == "qlora" else set()
    assert files == {"adapter_config.json", "adapter_model.safetensors"} | quantised
    config = json.loads((tmp_path / "model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(Path(base).resolve())
    for use in ("train", "frozen"):
        again = load_causal_lm(tmp_path / "model", options, use=use)
        torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
        trained = sum(p.requires_grad for p in again.parameters())
        assert trained == (28 if use == "train" else 0)
    if adapter == "lora":
        peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(logits(peft), logits(model), rtol=0, atol=0)
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "model"))
        torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=0)
        merged = load_causal_lm(tmp_path / "model", options, use="merged")
        assert not any(p.requires_grad for p in merged.parameters()) and not hasattr(merged, "peft_config")
        torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)
        full = load_causal_lm(tmp_path / "model", section(base, "none", lora={"rank": 16, "alpha": 32}))
        assert all(p.requires_grad for p in full.parameters()) and not hasattr(full, "peft_config")
    else:
        with pytest.raises(ModelFileError, match="align merge"):
            load_causal_lm(tmp_path / "model", options, use="merged")


@pytest.mark.parametrize("tied", [False, True])
def test_modules_to_save(tmp_path, tied):
    base = save_causal_lm(tmp_path / "base", tie_word_embeddings=tied)
    names = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    options = section(base, lora={"targets": ["q_proj"], "modules_to_save": names})
    model = stir(load_causal_lm(base, options))
    trained = {name.rpartition("modules_to_save")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {"base_model.model.model.embed_tokens."} <= trained
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients(model).values())
    if tied:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    adapters.save_pretrained(model, tmp_path / "model")
    again = load_causal_lm(tmp_path / "model", options)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    merged = load_causal_lm(tmp_path / "model", options, use="merged")
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)
    body = load_critic(tmp_path / "model", options).eval()
    assert torch.equal(body.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_names_that_the_model_does_not_have(base):
    with pytest.raises(RecipeError) as caught:
        load_causal_lm(base, section(base, lora={"targets": ["q_prj", "v_proj"], "modules_to_save": ["score"]}))
    targets, whole = caught.value.problems
    linear = "down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    assert targets == f"model.lora.targets: the model has no 'q_prj'; it has {linear}"
    assert whole.startswith("model.lora.modules_to_save: the model has no 'score'; it has down_proj, embed_tokens,")
    body = load_critic(base, section(base, lora={"targets": ["q_proj", "lm_head"]}))
    assert sum("lora_A" in name for name, _ in body.named_parameters()) == 2


@pytest.mark.needs("bitsandbytes")
def test_a_layer_in_4_bits_is_not_saved_whole(base):
    with pytest.raises(RecipeError, match="'q_proj' is stored in 4 bits"):
        load_causal_lm(base, section(base, "qlora", lora={"targets": ["v_proj"], "modules_to_save": ["q_proj"]}))


def test_qlora_without_bitsandbytes(base, monkeypatch):
    options = section(base, "qlora")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'align-rlhf\[bitsandbytes\]'"):
        load_causal_lm(base, options)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_of_a_language_model_goes_on_its_body(base, tmp_path, adapter):
    options = section(base, adapter)
    model = stir(load_causal_lm(base, options))
    adapters.save_pretrained(model, tmp_path / "sft")
    with torch.no_grad():
        expected = model.base_model.model.model(input_ids=IDS, attention_mask=MASK).last_hidden_state
        for load in (load_reward_model, load_critic):
            headed = load(tmp_path / "sft", options)
            torch.testing.assert_close(headed.states(IDS, MASK), expected, rtol=0, atol=0)
    headed = load_reward_model(tmp_path / "sft", options)
    headed.save_pretrained(tmp_path / "rm")
    again = load_reward_model(tmp_path / "rm", options)
    torch.testing.assert_close(again(IDS, MASK), headed(IDS, MASK), rtol=0, atol=0)
    critic = load_critic(tmp_path / "rm", options)
    torch.testing.assert_close(critic.states(IDS, MASK), expected, rtol=0, atol=0)
    frozen = load_reward_model(tmp_path / "rm", options, use="frozen")
    assert not any(p.requires_grad for p in frozen.parameters())


def test_damaged_adapters(base, tmp_path):
    options = section(base)
    adapters.save_pretrained(load_causal_lm(base, options), tmp_path / "model")
    load_reward_model(base, options).save_pretrained(tmp_path / "rm")
    with pytest.raises(ModelFileError, match="made for another model"):
        load_causal_lm(tmp_path / "rm", options)
    weights = tmp_path / "model/adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    with pytest.raises(ModelFileError, match="cut short"):
        load_causal_lm(tmp_path / "model", options)
    weights.unlink()
    with pytest.raises(ModelFileError, match=r"no adapter_model\.safetensors"):
        load_causal_lm(tmp_path / "model", options)
    weights.write_bytes(whole)
    config = tmp_path / "model/adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(MissingFileError, match="stands on it; correct base_model_name_or_path"):
        load_causal_lm(tmp_path / "model", options)
    config.write_text(json.dumps(values | {"r": 8}))
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        load_causal_lm(tmp_path / "model", options)


@pytest.mark.gpu
@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_adapters_learn_on_a_gpu_with_paged_moments(base, adapter):
    options = section(base, adapter, dtype="bfloat16", gradient_checkpointing=True)
    loaded = load_causal_lm(base, options).train()
    told = OptimSection(learning_rate=1e-2, optimizer="paged_adamw_8bit")
    model = TrainedModel(loaded, told, Accelerator(), total_steps=9)
    batch = {name: tensor.cuda() for name, tensor in (("input_ids", IDS), ("attention_mask", MASK), ("labels", IDS))}
    losses = []
    for _ in range(8):
        loss = model.module(**batch).loss
        model.accelerator.backward(loss)
        assert torch.isfinite(model.clip())
        model.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1
    assert {p.device.type for p in loaded.parameters()} == {"cuda"}


def test_an_adapter_on_the_head_alone_is_none_for_a_reward_model(base):
    told = section(base, lora={"targets": ("lm_head",)})
    assert load_causal_lm(base, told).peft_config["default"].target_modules == {"lm_head"}
    with pytest.raises(RecipeError, match=r"model\.lora\.targets: names the head alone"):
        load_reward_model(base, told)
