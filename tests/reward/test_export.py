"""An exported reward model, loaded by transformers alone."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2ForSequenceClassification

from align.runtime.errors import StorageError
from data_formats.chatml import CHAT_TEMPLATE
from data_formats.records import Message
from reward.classifier import ClassifierReward
from reward.errors import ModelFileError
from reward.export import ExportError, export_classifier
from reward.model import RewardModel
from reward.protocol import Sample
from reward.sources import load_reward
from tests.tiny_models import byte_tokenizer, save_causal_lm

SHIFT = 0.75
SAMPLES = [
    Sample((Message("user", "Hi"),), "Hello there"),
    Sample((Message("system", "Be kind."), Message("user", "Why?")), "No."),
    Sample((Message("user", "One"), Message("assistant", "Two"), Message("user", "Three")), "Four, five, six."),
    Sample((Message("user", "x"),), ""),
]


def save_reward(folder, **changes):
    base = save_causal_lm(folder / "base", **changes)
    torch.manual_seed(1)
    model = RewardModel.from_backbone(base)
    model.shift.fill_(SHIFT)
    model.save_pretrained(folder / "rm")
    byte_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(folder / "rm")
    return folder / "rm"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return save_reward(folder), export_classifier(folder / "rm", folder / "out")


def test_transformers_gives_our_raw_scores_on_padded_batches(exported):
    ours, theirs = exported
    reward = load_reward(ours)
    model, info = AutoModelForSequenceClassification.from_pretrained(theirs, output_loading_info=True)
    assert type(model) is Qwen2ForSequenceClassification
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = [score + SHIFT for score in reward.score(SAMPLES)]
    assert max(expected) - min(expected) > 0.1
    tokenizer = AutoTokenizer.from_pretrained(theirs)
    rows = reward.token_rows(SAMPLES)
    assert all(row[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") for row in rows)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.no_grad():
            raw = model.eval()(**batch).logits.squeeze(-1).tolist()
        assert raw == pytest.approx(expected, abs=1e-5), side


def test_its_chat_template_gives_what_we_score(exported):
    ours, theirs = exported
    tokenizer, expected = AutoTokenizer.from_pretrained(theirs), load_reward(ours).token_rows(SAMPLES)
    for sample, row in zip(SAMPLES, expected, strict=True):
        turns = [*sample.prompt, Message("assistant", sample.completion)]
        text = tokenizer.apply_chat_template([{"role": t.role, "content": t.content} for t in turns], tokenize=False)
        assert text.endswith("<|im_end|>")
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == row


def test_it_comes_back_as_a_foreign_reward_model(exported):
    ours, theirs = exported
    again = load_reward(theirs)
    assert isinstance(again, ClassifierReward)
    assert again.score(SAMPLES) == pytest.approx(
        [score + SHIFT for score in load_reward(ours).score(SAMPLES)], abs=1e-5
    )


def test_config_and_card_say_what_to_do_with_the_scores(exported):
    _, theirs = exported
    config = json.loads((theirs / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"} and config["pad_token_id"] == 256
    assert (config["reward_shift"], config["reward_scale"]) == (SHIFT, 1.0)
    card = (theirs / "README.md").read_text()
    for words in ("ends at `<|im_end|>`", "without the newline", "| `reward_shift` | 0.75 |", "id 256", "float32"):
        assert (words in card) == (words != "float32"), words


def test_the_cards_program_runs(exported, tmp_path, monkeypatch):
    ours, theirs = exported
    program = (theirs / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(theirs)
    found = {}
    exec(program, found)
    moon = Sample((Message("user", "How far is the moon?"),), "About 384,000 km.")
    assert found["score"] == pytest.approx(load_reward(ours).score([moon])[0], abs=1e-5)


def test_another_dtype_is_named_in_the_card(exported, tmp_path):
    ours, _ = exported
    out = export_classifier(ours, tmp_path / "half", dtype="bfloat16")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.dtype == torch.bfloat16 == model.score.weight.dtype
    assert "stored in bfloat16" in (out / "README.md").read_text()


def test_other_poolings_are_refused_with_the_reason(exported, tmp_path):
    settings = json.loads((exported[0] / "reward_config.json").read_text()) | {"pooling": "mean"}
    for file in exported[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "reward_config.json").write_text(json.dumps(settings))
    with pytest.raises(ExportError, match=r"pools by 'mean'.*at the last token alone"):
        export_classifier(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_reward_model_or_no_empty_folder_is_refused(exported, tmp_path):
    with pytest.raises(ModelFileError, match=r"no reward_config\.json"):
        export_classifier(save_causal_lm(tmp_path / "lm"), tmp_path / "out")
    with pytest.raises(StorageError, match="holds something already"):
        export_classifier(exported[0], exported[1])


def test_an_architecture_without_such_a_classifier_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    RewardModel(BertModel(BertConfig(vocab_size=259, **shape))).save_pretrained(tmp_path / "rm")
    byte_tokenizer().save_pretrained(tmp_path / "rm")
    with pytest.raises(ExportError, match="BertModel has no sequence classifier"):
        export_classifier(tmp_path / "rm", tmp_path / "out")


def test_a_pad_token_that_is_the_end_token_is_replaced(exported, tmp_path):
    for file in exported[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(export_classifier(tmp_path, tmp_path / "out"))
    assert model.config.pad_token_id == 256


@pytest.mark.slow
@pytest.mark.needs("vllm")
def test_vllm_serves_the_same_raw_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}
    ours = save_reward(tmp_path, **sizes, initializer_range=0.1)  # kernels want heads of 32 at least
    theirs = export_classifier(ours, tmp_path / "out")
    reward, threads = load_reward(ours), torch.set_num_threads
    expected = [score + SHIFT for score in reward.score(SAMPLES)]
    llm = vllm.LLM(
        str(theirs), runner="pooling", convert="classify", dtype="float32", max_model_len=128, enforce_eager=True
    )
    torch.set_num_threads = threads
    prompts = [{"prompt_token_ids": row} for row in reward.token_rows(SAMPLES)]
    params = vllm.PoolingParams(use_activation=False)
    raw = [out.outputs.probs[0] for out in llm.classify(prompts, pooling_params=params, use_tqdm=False)]
    assert max(expected) - min(expected) > 0.1
    assert raw == pytest.approx(expected, abs=1e-4)
