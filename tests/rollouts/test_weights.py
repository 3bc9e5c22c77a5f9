"""The stream equals what `merge_and_unload().save_pretrained` writes, for every kind of policy."""

import copy
import gc
import hashlib
import weakref

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rollouts.errors import RolloutError
from rollouts.weights import (
    adapter_tensors,
    checkpoint_bytes,
    checkpoint_names,
    checkpoint_tensors,
    is_4bit,
    pushes_adapter,
)
from tests.tiny_models import qwen2_config


def qwen2(seed: int = 0, **changes) -> nn.Module:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(qwen2_config(**changes)).eval()


def qwen3_moe(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **{"vocab_size": 259, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8},
            **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
            **{"num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "max_position_embeddings": 64},
        )
    ).eval()


def adapted(base: nn.Module, seed: int = 7, **options) -> nn.Module:
    """A PEFT model whose adapter is not the identity."""
    options = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.add_(noise.to(parameter))
    return model


ADAPTERS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.3},
    "all_linear": {"target_modules": "all-linear"},
    "dora_all_linear": {"target_modules": "all-linear", "use_dora": True},
    "bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "saved": {"modules_to_save": ["lm_head", "norm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved_embedding": {"modules_to_save": ["embed_tokens"]},
}


def written(model: nn.Module, folder) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        found.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
        found.update(f"{tensor.dtype}{tensor.shape}{tensor.requires_grad}{tensor.grad is None}".encode())
    return found.hexdigest()


def agree(model: nn.Module, expected: dict[str, torch.Tensor], rounding: float = 0.0) -> None:
    before, modes = digest(model), [module.training for module in model.modules()]
    shapes = checkpoint_names(model)
    found = {}
    for name, tensor in checkpoint_tensors(model):
        assert name not in found
        assert not tensor.requires_grad
        found[name] = tensor.clone()
    assert digest(model) == before and [module.training for module in model.modules()] == modes
    assert found.keys() == expected.keys()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        if rounding:
            error, scale = (found[name].double() - tensor.double()).abs().max(), tensor.double().abs().max()
            assert error <= rounding * scale, name
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_models(tmp_path, tied, dtype):
    model = qwen2(tie_word_embeddings=tied).to(dtype)
    expected = written(model, tmp_path)
    assert ("lm_head.weight" in expected) != tied
    agree(model, expected)


def test_fused_experts_come_one_by_one(tmp_path):
    model = qwen3_moe()
    assert not any("experts.3.up_proj" in name for name, _ in model.named_parameters())
    expected = written(model, tmp_path)
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in expected
    agree(model, expected)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_are_merged_as_peft_merges_them(tmp_path, kind):
    model = adapted(qwen2(), **ADAPTERS[kind])
    expected = written(copy.deepcopy(model).merge_and_unload(), tmp_path)
    plain = written(qwen2(), tmp_path / "base")
    assert any(not torch.equal(expected[name], plain[name]) for name in plain)
    agree(model, expected)
    base = dict(checkpoint_tensors(model, merge=False))
    assert base.keys() == plain.keys() and all(torch.equal(base[name], plain[name]) for name in plain)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_bfloat16_base_is_merged_in_float32(tmp_path, kind):
    """Float32 adapters on a bfloat16 base, as QLoRA and autocast hold them, against a merge that never rounds."""
    model = adapted(qwen2().bfloat16(), **ADAPTERS[kind])
    wide = copy.deepcopy(model).float().merge_and_unload()
    exact = {name: tensor.bfloat16() for name, tensor in written(wide, tmp_path / "wide").items()}
    saved = ADAPTERS[kind].get("modules_to_save", ())  # PEFT trains copies in float32
    expected = {
        name: tensor.float() if any(part in name.split(".") for part in saved) and "layers" not in name else tensor
        for name, tensor in exact.items()
    }
    agree(model, written(copy.deepcopy(model).merge_and_unload(), tmp_path / "peft"), rounding=2**-7)
    if not saved:
        agree(model, expected)


def test_experts_and_router_with_adapters(tmp_path):
    options = {"target_modules": ["q_proj", "o_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    model = adapted(qwen3_moe(), **options)
    agree(model, written(copy.deepcopy(model).merge_and_unload(), tmp_path))


def test_tied_embeddings_with_an_adapter_on_other_layers(tmp_path):
    model = adapted(qwen2(tie_word_embeddings=True))
    expected = written(copy.deepcopy(model).merge_and_unload(), tmp_path)
    assert "lm_head.weight" not in expected
    agree(model, expected)


def test_an_adapter_that_unties_the_embeddings_is_pushed_as_the_model_computes():
    """PEFT's own merge changes the head too, which the forward does not."""
    model = adapted(qwen2(tie_word_embeddings=True), target_modules=["embed_tokens"])
    found = {name: tensor.clone() for name, tensor in checkpoint_tensors(model)}
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    plain = qwen2(tie_word_embeddings=False)
    plain.load_state_dict(found)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, model(ids).logits, atol=1e-5)


def test_several_and_switched_off_adapters(tmp_path):
    model = adapted(qwen2())
    plain = written(qwen2(), tmp_path / "base")
    with model.disable_adapter():
        agree(model, plain)
    merged = copy.deepcopy(model)
    merged.merge_adapter()  # in place: the base holds the change already
    agree(merged, written(copy.deepcopy(model).merge_and_unload(), tmp_path / "merged"))


def quantised(folder, dtype=torch.bfloat16) -> nn.Module:
    from transformers import AutoModelForCausalLM

    from reward.adapter import keep_unpacked, quantization_4bit

    qwen2(hidden_size=64, intermediate_size=64).to(dtype).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization_4bit())
    keep_unpacked(model)
    return model


@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"target_modules": "all-linear"}], ids=str)
def test_4bit_bases_are_dequantised_and_merged_in_float32(tmp_path, options):
    from transformers import AutoModelForCausalLM

    model = adapted(quantised(tmp_path / "base"), **options)
    assert is_4bit(model) and not pushes_adapter(model, "auto", "cuda")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    dequantised = quantised(tmp_path / "base").dequantize()
    wide.load_state_dict(dequantised.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(wide.parameters(), qwen2_64(), strict=True))
    reference = adapted(wide.float(), **options)
    own = {name: tensor for name, tensor in model.named_parameters() if "lora" in name}
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name in own:
                parameter.copy_(own[name])
    expected = written(reference.merge_and_unload(), tmp_path / "merged")
    agree(model, {name: tensor.bfloat16() for name, tensor in expected.items()})


def qwen2_64():
    return list(qwen2(hidden_size=64, intermediate_size=64).bfloat16().parameters())


@pytest.mark.parametrize("kind", ["full", "tied", pytest.param("4bit", marks=pytest.mark.needs("bitsandbytes"))])
def test_bytes_of_a_push_are_known_before_it(tmp_path, kind):
    """Room for them is looked for: 4-bit weights travel in the dtype they compute as, four times as many bytes."""
    model = adapted(quantised(tmp_path)) if kind == "4bit" else qwen2(tie_word_embeddings=kind == "tied")
    assert checkpoint_bytes(model) == sum(tensor.nbytes for _, tensor in checkpoint_tensors(model))


@pytest.mark.needs("bitsandbytes")
def test_packed_4bit_weights_say_the_same(tmp_path):
    """bitsandbytes repacks at the first forward in eval mode, on some CPUs."""
    import bitsandbytes

    model = quantised(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in checkpoint_tensors(model)}
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        model.eval()(torch.arange(8)[None])
    after = {name: tensor.clone() for name, tensor in checkpoint_tensors(model)}
    assert before.keys() == after.keys()
    for name, tensor in before.items():  # packing rounds the scales
        assert torch.allclose(after[name].float(), tensor.float(), rtol=2**-6, atol=1e-6), name


def test_one_tensor_at_a_time():
    """While the stream runs, nothing but the last tensor is alive, whatever the model's size."""
    model = adapted(qwen2(num_hidden_layers=4), target_modules="all-linear")
    alive: list[weakref.ref] = []
    most = 0
    for _, tensor in checkpoint_tensors(model):
        alive.append(weakref.ref(tensor.untyped_storage()))
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        living = [store for ref in alive[:-1] if (store := ref()) is not None and store.data_ptr() not in own]
        most = max(most, len(living))
        del tensor, living
    gc.collect()
    assert len(alive) > 40
    assert most <= 1  # the weight next to its layer's bias


def test_a_gathered_tensor_is_asked_for_when_its_turn_comes():
    model, asked = adapted(qwen2()), []

    def gather(tensor):
        asked.append(tensor.shape)
        return tensor.clone()

    stream = checkpoint_tensors(model, gather)
    assert asked == []
    next(stream)
    assert len(asked) == 1
    found = dict(stream)
    assert torch.equal(found["lm_head.weight"], model.base_model.model.lm_head.weight)
    assert len(asked) == len(list(model.parameters()))
    assert len(list(checkpoint_names(model))) == len(found) + 1


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "saved", "all_linear"])
def test_adapters_alone_in_pefts_file_format(tmp_path, kind):
    import json

    model = adapted(qwen2(), **ADAPTERS[kind])
    before = digest(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    config, stream = adapter_tensors(model)
    found, expected = dict(stream), load_file(tmp_path / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    compared = {"r", "lora_alpha", "use_rslora", "use_dora", "bias", "peft_type", "task_type", "modules_to_save"}
    assert {key: config[key] for key in compared} == {key: saved[key] for key in compared}
    assert sorted(config["target_modules"]) == sorted(saved["target_modules"])
    assert digest(model) == before
    possible = kind in ("lora", "rslora", "all_linear")
    assert pushes_adapter(model, "auto", "cuda") == possible
    assert not pushes_adapter(model, "auto", "cpu") and not pushes_adapter(model, "merge", "cuda")
    if possible:
        assert pushes_adapter(model, "adapter", "cpu")
    else:
        with pytest.raises(RolloutError, match="choose merge"):
            pushes_adapter(model, "adapter", "cuda")


def test_what_cannot_be_pushed_is_said():
    with pytest.raises(RolloutError, match="has no adapter"):
        adapter_tensors(qwen2())
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(RolloutError, match="prompt tuning"):
        list(checkpoint_tensors(peft.get_peft_model(qwen2(), config)))
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])
    with pytest.raises(RolloutError, match=r"q_proj: adapters of kind"):
        list(checkpoint_tensors(peft.get_peft_model(qwen2(), config)))
