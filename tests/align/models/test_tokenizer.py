"""The trained tokenizer, its reload by AutoTokenizer, and what `load_tokenizer` refuses."""

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from align.models.tokenizer import TokenizerError, load_saved_tokenizer, load_tokenizer, train_tokenizer
from align.runtime.errors import MissingFileError
from data_formats.chat_format import chat_format
from data_formats.chatml import CHAT_TEMPLATE

TEXTS = ["The river runs to the sea.", "The river is 1234 miles long.", "河流入海。", "the the the river river"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def test_size_and_control_tokens(tokenizer):
    assert isinstance(tokenizer, Qwen2Tokenizer)
    assert len(tokenizer) == 300
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<|endoftext|>", "<|im_end|>", None)
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_digits_are_split_singly_and_roles_are_whole(tokenizer):
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert tokenizer.tokenize("assistant\n") == ["assistant", "Ċ"]


def test_text_is_composed_to_nfc(tokenizer):
    assert tokenizer.decode(tokenizer("e\u0301")["input_ids"]) == "\u00e9"


def test_training_is_deterministic(tokenizer):
    assert train_tokenizer(TEXTS, 300).get_vocab() == tokenizer.get_vocab()


def test_every_byte_can_be_encoded_even_unseen(tokenizer):
    text = "\x00\x7f𝄞 ж\ud7ff"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_a_vocabulary_below_the_bytes_is_refused():
    with pytest.raises(TokenizerError, match="vocab_size is 258, but 256 bytes and 3 control tokens need 259"):
        train_tokenizer(TEXTS, 258)


@pytest.mark.parametrize(
    ("template", "format"),
    [
        (CHAT_TEMPLATE, "chatml"),
        (None, "chatml"),  # it has the tokens
        ("{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}", "own"),
    ],
)  # fmt: skip
def test_a_saved_model_says_how_it_speaks(tokenizer, tmp_path, template, format):
    tokenizer.save_pretrained(tmp_path)
    changed = AutoTokenizer.from_pretrained(tmp_path)
    changed.chat_template = template
    changed.save_pretrained(tmp_path / "changed")
    if template is None:
        (tmp_path / "changed/chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "changed/generation_config.json").write_text('{"eos_token_id": [0]}')
    speaker = chat_format(load_saved_tokenizer(tmp_path / "changed"))
    assert (speaker.name, speaker.stop_ids) == (format, (2, 0))


def test_a_model_without_template_and_chatml_knows_no_turns(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    backend.add_special_tokens(["</s>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    speaker = chat_format(load_saved_tokenizer(tmp_path))
    assert (speaker.name, speaker.stop_ids) == ("none", (1,))


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    sample = "The river <|im_end|> is 42 \n\n 河 <|im_start|>user"
    for again in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert isinstance(again, Qwen2Tokenizer)
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again(sample)["input_ids"] == tokenizer(sample)["input_ids"]
        assert again.chat_template == CHAT_TEMPLATE
        assert (again.eos_token_id, again.pad_token_id) == (2, 0)
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_loading_sets_end_token_and_template_of_a_foreign_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"eos_token": "<|endoftext|>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ 'You are Qwen' }}")
    again = load_tokenizer(tmp_path)
    assert (again.eos_token, again.pad_token, again.chat_template) == ("<|im_end|>", "<|endoftext|>", CHAT_TEMPLATE)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_in_the_home_of_the_user(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenizer.save_pretrained(tmp_path / "mine")
    assert load_tokenizer("~/mine").get_vocab() == tokenizer.get_vocab()


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_one_clear_error(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_chatml_is_refused(tmp_path):
    Qwen2Tokenizer(vocab={"<|endoftext|>": 0, "a": 1}, merges=[]).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
        load_tokenizer(tmp_path)
