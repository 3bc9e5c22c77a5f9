"""`align merge`: the whole model gives what base and adapter gave."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import bitsandbytes

from align import cli
from align.models import adapters
from align.models.load import load_causal_lm, load_critic, load_reward_model
from reward.model import RewardModel
from tests.align.models.test_adapters import IDS, MASK, logits, section, stir
from tests.tiny_models import byte_tokenizer, save_causal_lm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    shape = {"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.1}
    return save_causal_lm(tmp_path_factory.mktemp("base"), **shape)


def saved(folder, base, adapter, load=load_causal_lm, **changes):
    """A stirred model's folder, and the model."""
    model = stir(load(base, section(base, adapter, **changes)))
    adapters.save_pretrained(model, folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def merge(folder, out, *words):
    return cli.main(["merge", str(folder), str(out), *words])


def refused(capsys, folder, out, *words):
    capsys.readouterr()
    assert merge(folder, out, *words) == 1 and not out.exists()
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "Traceback" not in shown
    return shown


@pytest.mark.parametrize("options", [{}, {"dora": True, "rslora": True}, {"modules_to_save": ["lm_head"]}])
def test_a_merged_language_model_is_that_with_its_adapter(tmp_path, base, options, capsys):
    model = saved(tmp_path / "sft", base, "lora", lora=options)
    assert not (tmp_path / "sft" / "README.md").exists()
    assert merge(tmp_path / "sft", tmp_path / "out") == 0
    assert f"merged into {base.resolve()}: a language model of" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names and "adapter_config.json" not in names
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(whole), logits(model), rtol=0, atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert float((logits(whole) - logits(plain)).abs().max()) > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"


@pytest.mark.needs("bitsandbytes")
def test_an_adapter_on_4bit_weights(tmp_path, base, capsys, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    bitsandbytes.logger.warning_once.cache_clear()
    model = saved(tmp_path / "sft", base, "qlora")
    shown = refused(capsys, tmp_path / "sft", tmp_path / "out")
    assert "--dequantize" in shown and "--base [MODEL]" in shown
    both = refused(capsys, tmp_path / "sft", tmp_path / "out", "--dequantize", "--base")
    assert "choose one of them" in both
    assert merge(tmp_path / "sft", tmp_path / "wide", "--dequantize") == 0
    shown = capsys.readouterr()
    assert "keeps the rounding to 4 bits" in shown.out and "dequantized" not in shown.err + caplog.text
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert "quantization_config" not in json.loads((tmp_path / "wide/config.json").read_text())
    torch.testing.assert_close(logits(wide), logits(model), rtol=0, atol=1e-5)
    assert merge(tmp_path / "sft", tmp_path / "exact", "--base") == 0
    assert "differs a little" in capsys.readouterr().out
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "exact")
    reference = load_causal_lm(base, section(base))
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" in k}, strict=False)
    torch.testing.assert_close(logits(exact), logits(reference), rtol=0, atol=1e-5)
    rounding = float((logits(exact) - logits(wide)).abs().max())
    assert rounding > 1e-3


@pytest.mark.parametrize("ends", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("whole", [False, True])
def test_adapters_at_tied_ends(tmp_path, ends, whole):
    """LoRA on one of them makes them differ; trained whole they stay one."""
    base = save_causal_lm(tmp_path / "tied", tie_word_embeddings=True)
    lora = {"targets": ["q_proj"], "modules_to_save": ends} if whole else {"targets": ["q_proj", *ends]}
    model = saved(tmp_path / "sft", base, "lora", lora=lora)
    assert merge(tmp_path / "sft", tmp_path / "out") == 0
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert made.config.tie_word_embeddings is whole
    torch.testing.assert_close(logits(made), logits(model), rtol=1e-5, atol=1e-4)
    bare = AutoModelForCausalLM.from_pretrained(base)
    assert float((logits(made) - logits(bare)).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("adapter", "words"),
    [("lora", []), pytest.param("qlora", ["--dequantize"], marks=pytest.mark.needs("bitsandbytes"))],
)
def test_a_reward_model_keeps_head_shift_and_scale(tmp_path, base, adapter, words):
    model = load_reward_model(base, section(base, adapter))
    stir(model.backbone)
    model.shift.fill_(0.5)
    model.scale.fill_(2.0)
    model.set_pooling("mean")
    adapters.save_pretrained(model, tmp_path / "rm")
    byte_tokenizer().save_pretrained(tmp_path / "rm")
    assert merge(tmp_path / "rm", tmp_path / "out", *words) == 0
    whole = RewardModel.from_pretrained(tmp_path / "out")
    assert not hasattr(whole.backbone, "peft_config")
    with torch.no_grad():
        torch.testing.assert_close(whole(IDS, MASK), model(IDS, MASK), rtol=0, atol=1e-5)
    critic = load_critic(base, section(base, adapter))
    stir(critic.backbone)
    adapters.save_pretrained(critic, tmp_path / "critic")
    byte_tokenizer().save_pretrained(tmp_path / "critic")
    assert merge(tmp_path / "critic", tmp_path / "whole", *words) == 0
    with torch.no_grad():
        again = load_critic(tmp_path / "whole", section(base))
        torch.testing.assert_close(again(IDS, MASK), critic(IDS, MASK), rtol=0, atol=1e-5)


def test_the_dtype_is_that_of_the_base_or_the_one_asked_for(tmp_path):
    base = save_causal_lm(tmp_path / "base", dtype=torch.bfloat16)
    saved(tmp_path / "sft", base, "lora", dtype="bfloat16")
    for words, dtype in ([], torch.bfloat16), (["--dtype", "float32"], torch.float32):
        out = tmp_path / f"out{len(words)}"
        assert merge(tmp_path / "sft", out, *words) == 0
        assert AutoModelForCausalLM.from_pretrained(out).dtype == dtype


def test_a_base_that_moved(tmp_path, capsys):
    base = save_causal_lm(tmp_path / "base")
    model = saved(tmp_path / "sft", base, "lora")
    base.rename(tmp_path / "moved")
    assert "stands on it" in refused(capsys, tmp_path / "sft", tmp_path / "out")
    nowhere = refused(capsys, tmp_path / "sft", tmp_path / "out", "--base", str(tmp_path / "nowhere"))
    assert "nowhere" in nowhere and "stands on it" not in nowhere  # its configuration is not at fault
    narrow = save_causal_lm(tmp_path / "narrow", hidden_size=8)
    assert "size mismatch for" in refused(capsys, tmp_path / "sft", tmp_path / "out", "--base", str(narrow))
    itself = refused(capsys, tmp_path / "sft", tmp_path / "out", "--base", str(tmp_path / "sft"))
    assert "sft is an adapter itself: name the whole model" in itself
    assert merge(tmp_path / "sft", tmp_path / "out", "--base", str(tmp_path / "moved")) == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-5, atol=1e-4)


def test_what_cannot_be_merged_is_one_sentence(tmp_path, base, capsys):
    assert "whole model, not an adapter" in refused(capsys, base, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "no adapter_config.json" in refused(capsys, tmp_path / "empty", tmp_path / "out")
    assert "does not exist" in refused(capsys, tmp_path / "nowhere/x", tmp_path / "out")
    saved(tmp_path / "sft", base, "lora")
    assert "nothing to dequantise" in refused(capsys, tmp_path / "sft", tmp_path / "out", "--dequantize")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    assert merge(tmp_path / "sft", tmp_path / "full") == 1
    assert "holds something already" in capsys.readouterr().err
    config = tmp_path / "sft/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": "SEQ_CLS"}))
    assert "of the kind SEQ_CLS" in refused(capsys, tmp_path / "sft", tmp_path / "out")
