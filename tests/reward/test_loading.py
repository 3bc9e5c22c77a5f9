import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, Qwen2Config

from align.runtime.errors import MissingFileError
from reward.errors import ModelFileError
from reward.loading import hub_file, load_pretrained, quiet, saved_tokenizer, set_dropout
from reward.model import RewardModel
from tests.tiny_models import qwen2_config, save_causal_lm


def test_set_dropout_by_kind():
    bert = BertConfig()
    set_dropout(bert, 0.1)
    assert (bert.attention_probs_dropout_prob, bert.hidden_dropout_prob, bert.classifier_dropout) == (0.1, 0.0, None)
    gpt2 = GPT2Config()
    set_dropout(gpt2, 0.0)
    assert (gpt2.attn_pdrop, gpt2.resid_pdrop, gpt2.embd_pdrop) == (0.0, 0.0, 0.0)
    qwen = Qwen2Config(attention_dropout=0.3)
    set_dropout(qwen, 0.1)
    assert qwen.attention_dropout == 0.1


def test_dropout_is_what_the_caller_says(tmp_path):
    save_causal_lm(tmp_path, attention_dropout=0.5)
    assert load_pretrained(AutoModel, tmp_path).layers[0].self_attn.attention_dropout == 0.0
    assert load_pretrained(AutoModel, tmp_path, attention_dropout=0.1).layers[0].self_attn.attention_dropout == 0.1
    assert load_pretrained(AutoModel, tmp_path, attention_dropout=None).layers[0].self_attn.attention_dropout == 0.5


def test_dtype_is_as_saved_or_as_asked(tmp_path):
    save_causal_lm(tmp_path, dtype=torch.bfloat16)
    assert load_pretrained(AutoModelForCausalLM, tmp_path).dtype == torch.bfloat16
    assert load_pretrained(AutoModelForCausalLM, tmp_path, dtype=torch.float32).dtype == torch.float32


def test_weights_of_another_kind_of_model_are_an_error(tmp_path):
    RewardModel(AutoModel.from_config(qwen2_config())).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match=r"lacks 1 weights of Qwen2ForCausalLM, the first lm_head\.weight"):
        load_pretrained(AutoModelForCausalLM, tmp_path)


def test_weights_of_another_size_are_an_error(tmp_path):
    import json

    save_causal_lm(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 40}))
    with pytest.raises(ModelFileError, match=f"{tmp_path} cannot be loaded: its weights have other shapes than its"):
        load_pretrained(AutoModel, tmp_path)


@pytest.mark.parametrize("key", ["num_labels", "num_hidden_layers", "n_layer"])
def test_a_count_that_would_be_made_one_by_one_for_hours_is_an_error(tmp_path, key):
    import json

    save_causal_lm(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: 10**9}))
    with pytest.raises(ModelFileError, match=f"config.json: {key} is 1000000000, more than any model has"):
        load_pretrained(AutoModel, tmp_path)


def test_an_unknown_model_type_is_an_error(tmp_path):
    save_causal_lm(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ModelFileError, match="no_such_model"):
        load_pretrained(AutoModel, tmp_path)


def test_a_hub_id_is_asked_for_with_its_revision_and_a_miss_names_it():
    with pytest.raises(MissingFileError, match=r"no-such-owner/no-such-model is neither a folder here nor"):
        load_pretrained(AutoModel, "no-such-owner/no-such-model", revision="abc", local_files_only=True)
    with pytest.raises(MissingFileError, match="no-such-model"):
        saved_tokenizer("no-such-owner/no-such-model", local_files_only=True)


def test_a_hub_id_in_the_cache_is_loaded_at_its_revision(tmp_path):
    """The cache layout of huggingface_hub, filled by hand: two revisions of one repository."""
    repository = tmp_path / "models--owner--tiny"
    for number, name in enumerate(("main", "old")):
        commit = str(number) * 40
        save_causal_lm(repository / "snapshots" / commit, seed=number)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    for number, revision in enumerate(("main", "old")):
        folder = repository / "snapshots" / (str(number) * 40)
        expected = AutoModel.from_pretrained(folder).state_dict()["norm.weight"] * 0 + 1
        model = load_pretrained(AutoModel, "owner/tiny", revision=revision, **options)
        same = AutoModel.from_pretrained(folder).embed_tokens.weight
        assert torch.equal(model.norm.weight, expected)
        assert torch.equal(model.embed_tokens.weight, same)
        assert saved_tokenizer("owner/tiny", revision=revision, dtype="ignored", **options).eos_token_id == 258
    assert hub_file("owner/tiny", "config.json", **options).is_file()
    assert not RewardModel.is_saved_at("owner/tiny", **options)


def test_code_in_a_model_folder_runs_only_when_trusted(tmp_path):
    import json

    save_causal_lm(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    file.write_text(json.dumps(config))
    mark = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    with pytest.raises(ModelFileError, match="trust_remote_code"):
        load_pretrained(AutoModel, tmp_path, trust_remote_code=False)
    assert not mark.exists()


def test_loading_is_silent_and_the_bars_come_back(tmp_path, capfd, caplog):
    from transformers.utils import logging as transformers_logging

    save_causal_lm(tmp_path)
    before = transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_pretrained(AutoModel, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert "REPORT" not in caplog.text
    assert transformers_logging.is_progress_bar_enabled() == before
    with quiet():
        assert not transformers_logging.is_progress_bar_enabled()
