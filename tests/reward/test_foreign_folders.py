"""Strange model folders: one sentence, or what their owners meant; never a score that chance has made."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2ForSequenceClassification,
)

from align.models.load import load_causal_lm, load_critic, load_reward_model
from align.models.save import save_model
from align.recipe.model_section import ModelSection
from align.runtime.errors import AlignError
from data_formats.records import Message
from reward import adapter
from reward.classifier import ClassifierReward
from reward.errors import ModelFileError, VocabularyError
from reward.loading import load_pretrained, saved_tokenizer
from reward.model import RewardModel
from reward.protocol import Sample
from reward.sources import load_reward
from tests.tiny_models import bert_tokenizer, byte_tokenizer, qwen2_config, save_causal_lm

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SAMPLES = [Sample((Message("user", text),), reply) for text, reply in (("hi", "a"), ("why not", "because of it"))]
TEMPLATE = "{% for m in messages %}{{ m.content }}.{% endfor %}"


def classifier(folder, **changes):
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(qwen2_config(num_labels=1, pad_token_id=256))
    model.save_pretrained(folder)
    byte_tokenizer(chat_template=TEMPLATE).save_pretrained(folder)
    change(folder / "config.json", **changes)
    return folder


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def one_sentence(error):
    text = str(error.value)
    assert isinstance(error.value, AlignError) and "\n" not in text and "Traceback" not in text
    return text


@pytest.mark.parametrize("pad", [-1, 259, 10**9])
def test_a_pad_id_that_is_no_token_is_none(tmp_path, pad, caplog):
    expected = ClassifierReward(classifier(tmp_path / "whole")).score(SAMPLES)
    reward = ClassifierReward(classifier(tmp_path / "odd", pad_token_id=pad))
    assert reward.pad_id is None and reward.score(SAMPLES) == pytest.approx(expected, abs=1e-5)
    assert f"pad_token_id {pad} is none of its 259 tokens" in caplog.text
    assert f"pad_token_id {pad}" in caplog.text
    load_causal_lm(save_causal_lm(tmp_path / "lm", pad_token_id=None), ModelSection(path="x"))
    change(tmp_path / "lm/config.json", pad_token_id=pad)
    assert load_causal_lm(tmp_path / "lm", ModelSection(path="x")).config.pad_token_id is None


def test_a_scoring_pooler_must_be_there(tmp_path):
    config = BertConfig(vocab_size=20, num_labels=1, **SHAPE)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    bert_tokenizer("hi a why not").save_pretrained(tmp_path)
    assert len(ClassifierReward(tmp_path).score(SAMPLES)) == 2
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=r"lacks 2 weights .* the first bert\.pooler\.dense\.bias"):
        ClassifierReward(tmp_path)
    RewardModel.from_backbone(tmp_path)  # its own head reads the states, not the pooler


@pytest.mark.parametrize("name", ["score.bias", "v_head.summary.weight", "model.layers.9.mlp.up_proj.weight"])
def test_weights_without_a_place_are_named(tmp_path, name):
    folder = classifier(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=f"holds 1 weights .* the first {name}"):
        load_reward(folder)


def test_missing_weights_are_named_for_every_role(tmp_path):
    folder = save_causal_lm(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for load in (load_causal_lm, load_reward_model, load_critic):
        with pytest.raises(ModelFileError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj\.weight"):
            load(folder, ModelSection(path=str(folder)))


def test_heads_on_a_body_whose_states_have_another_width(tmp_path):
    """OPT-350M: a hidden size of 1024, embeddings and states of 512."""
    config = OPTConfig(
        vocab_size=259,
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
        max_position_embeddings=64,
        pad_token_id=256,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    told = ModelSection(path=str(tmp_path / "opt"))
    for load in (load_reward_model, load_critic):
        model = load(tmp_path / "opt", told)
        assert model.head.weight.shape == (1, 8)
        ids = torch.tensor([[5, 6, 7]])
        found = model(ids, torch.ones_like(ids))
        model.save_pretrained(tmp_path / load.__name__)
        again = type(model).from_pretrained(tmp_path / load.__name__)
        assert torch.equal(again(ids, torch.ones_like(ids)), found)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [[3, 258], {"embed_tokens": [3, 258]}])
def test_an_adapter_with_trained_tokens(tmp_path, tied, tokens):
    base = save_causal_lm(tmp_path / "base", tie_word_embeddings=tied)
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options, trainable_token_indices=tokens)
    )
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data += 0.5
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    ids = torch.tensor([[3, 5, 258]])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        plain = model.get_base_model()
        loaded = load_causal_lm(tmp_path / "adapter", ModelSection(path=str(base), adapter="lora"), use="frozen")
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
        whole = load_causal_lm(tmp_path / "adapter", ModelSection(path=str(base)), use="merged")
        torch.testing.assert_close(whole(input_ids=ids).logits, expected, rtol=0, atol=1e-5)
        body = adapter.load_body(tmp_path / "adapter")
        states = plain.base_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(body(input_ids=ids).last_hidden_state, states)


def test_an_adapters_missing_token_is_still_named(tmp_path):
    base = save_causal_lm(tmp_path / "base")
    options = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "trainable_token_indices": [3]}
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**options)).save_pretrained(
        tmp_path / "adapter"
    )
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if "token_adapter" not in name}
    save_file(kept, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(ModelFileError, match=r"trainable_tokens_delta' is missing"):
        load_causal_lm(tmp_path / "adapter", ModelSection(path=str(base)))


def test_scaled_rotary_embeddings_of_the_batch_are_told(tmp_path, caplog):
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
    }
    config = Phi3Config(
        vocab_size=259,
        **SHAPE,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_scaling=scaling,
        pad_token_id=None,
    )
    Phi3ForCausalLM(config).save_pretrained(tmp_path / "phi")
    load_reward_model(tmp_path / "phi", ModelSection(path="x"))
    assert "rotary embedding (longrope) changes for a whole batch when one row is longer than 32 tokens" in caplog.text
    caplog.clear()
    llama = LlamaConfig(
        vocab_size=259,
        **SHAPE,
        num_labels=1,
        pad_token_id=256,
        max_position_embeddings=64,
        rope_scaling={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    )
    LlamaForSequenceClassification(llama).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    load_reward(tmp_path / "llama")
    assert "(dynamic)" in caplog.text and "64 tokens" in caplog.text
    caplog.clear()
    load_causal_lm(save_causal_lm(tmp_path / "plain"), ModelSection(path="x"))
    assert "rotary" not in caplog.text


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_a_model_without_that_attention_names_the_key(tmp_path, family):
    if family == "bloom":
        BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    else:
        MambaForCausalLM(
            MambaConfig(vocab_size=259, hidden_size=16, num_hidden_layers=1, state_size=4)
        ).save_pretrained(tmp_path)
    for load in (load_causal_lm, load_reward_model, load_critic):
        with pytest.raises(ModelFileError, match=r"set model\.attn_implementation=eager$") as caught:
            load(tmp_path, ModelSection(path=str(tmp_path)))
        one_sentence(caught)
        load(tmp_path, ModelSection(path=str(tmp_path), attn_implementation="eager"))


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    small = save_causal_lm(tmp_path / "small", vocab_size=100, eos_token_id=1)
    told, tokenizer = ModelSection(path=str(small)), byte_tokenizer()
    for load in (load_causal_lm, load_reward_model, load_critic):
        for adapted in ({}, {"adapter": "lora"}):
            with pytest.raises(VocabularyError, match=r"100 token embeddings, fewer than the 259 tokens") as caught:
                load(small, told.model_copy(update=adapted), tokenizer=tokenizer)
            assert str(small) in one_sentence(caught)
    rm = tmp_path / "rm"
    save_model(RewardModel.from_backbone(small), tokenizer, rm)
    with pytest.raises(VocabularyError):
        load_reward(rm)
    folder = classifier(tmp_path / "classifier")
    grown = byte_tokenizer(chat_template=TEMPLATE)
    grown.add_tokens(["<new>"])
    grown.save_pretrained(folder)
    with pytest.raises(VocabularyError, match=r"'<new>' is token 259"):
        load_reward(folder)


STRANGE = {
    "layers": {"num_hidden_layers": "x"},
    "no heads": {"num_attention_heads": 0},
    "no key heads": {"num_key_value_heads": 0},
    "dtype": {"dtype": "__class__"},
    "negative": {"hidden_size": -16},
    "vocabulary": {"vocab_size": -1},
    "no vocabulary": {"vocab_size": None},
    "activation": {"hidden_act": "no such"},
    "rope": {"rope_parameters": {"rope_type": "yarn"}},
    "rope of a kind": {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1.0}},
    "rope list": {"rope_parameters": [1]},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": "maybe"}},
    "quantised otherwise": {"quantization_config": {"quant_method": "no such"}},
    "quantised by gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "type": {"model_type": ["qwen2"]},
    "layer types": {"layer_types": [3]},
    "huge": {"num_hidden_layers": True, "intermediate_size": 10**30},
    "text config": {"text_config": 5},
    "labels": {"id2label": 7},
    "eps": {"rms_norm_eps": "small"},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_config_is_one_sentence(tmp_path, kind):
    folder = save_causal_lm(tmp_path)
    change(folder / "config.json", **STRANGE[kind])
    for load in (load_causal_lm, load_reward_model, load_critic):
        try:
            load(folder, ModelSection(path=str(folder)))
        except AlignError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            assert error.__cause__ is not None or kind in ("activation", "text config") or "lacks" in str(error)
        else:
            assert kind in (
                "text config",
                "labels",
                "layer types",
                "eps",
                "rope list",
                "quantised otherwise",  # which transformers passes over with a warning
            ), "this cannot be what was saved"


@pytest.mark.parametrize("text", ["[1]", "{", "null", '{"model_type": ' + "[" * 100_000, "\udcff"])
def test_a_config_that_is_no_object(tmp_path, text):
    folder = save_causal_lm(tmp_path)
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFileError) as caught:
        load_causal_lm(folder, ModelSection(path=str(folder)))
    assert "config.json" in one_sentence(caught)


@pytest.mark.parametrize(
    "values",
    [
        {"model_max_length": "x"},
        {"model_max_length": -5},
        {"pad_token": 5},
        {"eos_token": ["a"]},
        {"tokenizer_class": 7},
        {"added_tokens_decoder": {"x": 3}},
        {"added_tokens_decoder": [1]},
        {"extra_special_tokens": 9},
        {"chat_template": {"a": 5}},
    ],
)
def test_a_strange_tokenizer_config_is_one_sentence(tmp_path, values):
    from align.models import tokenizer as ours

    folder = classifier(tmp_path)
    change(folder / "tokenizer_config.json", **values)
    for load in (ours.load_tokenizer, saved_tokenizer, ClassifierReward):
        try:
            load(folder)
        except AlignError as error:
            assert str(folder) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("path", ["~nouser-of-that-name/x", "/" + "x" * 5000, "x" * 300, "a\0b", "/etc/passwd/model"])
def test_a_strange_path_is_one_sentence(path):
    from align.models import tokenizer as ours

    for load in (
        lambda where: load_pretrained(AutoModel, where, local_files_only=True),
        saved_tokenizer,
        ours.load_tokenizer,
    ):
        with pytest.raises(AlignError) as caught:
            load(path)
        one_sentence(caught)
