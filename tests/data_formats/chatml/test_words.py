"""Ids of words are the ids of the text, for every Qwen tokenizer and any text."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_formats.chatml import encode_texts
from data_formats.chatml.words import encodes_word_by_word, split_words
from tests.qwen_tokenizers import qwen

HARD = [
    " ",
    "  ",
    "\n",
    " \n ",
    "\u3000",
    "\u00a0",
    "\u0085",
    "\x1c",
    "\u180e",
    "!",
    "!\n",
    "'s",
    "'S t",
    "a",
    "1",
    "½",
    "你好",
]
HARD += ["\u0301", "e\u0301", "é", "\u200d", "\u1100\u1161", "\r\n", "\t"]
ANY_TEXT = st.lists(
    st.one_of(st.sampled_from(HARD), st.text(st.characters(exclude_categories=("Cs",)))), max_size=14
).map("".join)


@pytest.fixture(scope="module")
def whole():
    """A tokenizer and its backend without added tokens, which is given whole texts."""
    tokenizer = qwen("2.5")
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"added_tokens": [], "post_processor": None}
    return tokenizer, type(tokenizer.backend_tokenizer).from_str(json.dumps(state))


@settings(max_examples=200, deadline=None)
@given(text=ANY_TEXT)
def test_words_give_the_ids_of_the_whole_text(whole, text):
    tokenizer, backend = whole
    assert "".join(split_words(text)) == text
    assert encode_texts(tokenizer, [text]) == [backend.encode(text, add_special_tokens=False).ids]


def test_a_text_is_cut_before_spaces_after_visible_characters():
    assert split_words("a  b! c\n d 你好") == ["a", "  b!", " c\n d", " 你好"]
    assert split_words("") == [""]


@pytest.mark.parametrize("release", ["1.5", "2", "2.5", "3"])
def test_every_qwen_is_encoded_word_by_word(release):
    assert encodes_word_by_word(json.loads(qwen(release).backend_tokenizer.to_str()))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("normalizer", {"type": "NFKC"}),
        ("pre_tokenizer", {"type": "Metaspace"}),
        ("pre_tokenizer", None),
        ("model", {"type": "WordPiece"}),
        ("model", {"type": "BPE", "dropout": 0.1}),
        ("model", {"type": "BPE", "end_of_word_suffix": "</w>"}),
    ],
)
def test_other_tokenizers_get_whole_texts(part, change):
    state = json.loads(qwen("2.5").backend_tokenizer.to_str())
    assert encodes_word_by_word(state)
    assert not encodes_word_by_word(state | {part: change})
