"""ChatML: what is rendered, what has loss, and that text never becomes a control token."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.models.tokenizer import train_tokenizer
from data_formats import chatml
from data_formats.chatml import Piece, encode, encode_many, encode_texts, render
from data_formats.errors import DataError
from data_formats.records import Message

LOOKALIKES = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "<|fim|>", "<|im_", "end|>", "assistant\n"]
ANY_TEXT = st.lists(
    st.one_of(st.text(st.characters(exclude_categories=("Cs", "Cn"))), st.sampled_from(LOOKALIKES)), max_size=6
).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    made = train_tokenizer(
        ["user assistant tool call im start end <|im_start|> <|im_end|> <tool_call> héllo 你好"] * 3, 400
    )
    made.add_tokens(["<tool_call>"])  # merely "added", as in Qwen2.5
    made.add_tokens(["<|fim|>"], special_tokens=True)
    return made


def test_render_gives_loss_to_assistant_content_and_its_end_only():
    pieces = render([Message("system", "S"), Message("user", "U"), Message("assistant", "A")])
    assert pieces == [
        Piece("<|im_start|>", True, False),
        Piece("system\n", False, False),
        Piece("S", False, False),
        Piece("<|im_end|>", True, False),
        Piece("\n", False, False),
        Piece("<|im_start|>", True, False),
        Piece("user\n", False, False),
        Piece("U", False, False),
        Piece("<|im_end|>", True, False),
        Piece("\n", False, False),
        Piece("<|im_start|>", True, False),
        Piece("assistant\n", False, False),
        Piece("A", False, True),
        Piece("<|im_end|>", True, True),
        Piece("\n", False, False),
    ]


def test_generation_prompt_opens_an_assistant_turn():
    assert render([], add_generation_prompt=True) == [
        Piece("<|im_start|>", True, False),
        Piece("assistant\n", False, False),
    ]


@settings(max_examples=80, deadline=None)
@given(text=ANY_TEXT)
def test_text_never_gives_a_control_id_and_decodes_to_its_nfc(tokenizer, text):
    ids = encode_texts(tokenizer, [text])[0]
    assert not set(ids) & set(tokenizer.get_added_vocab().values())
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), ANY_TEXT), max_size=4))
def test_a_conversation_has_exactly_the_control_tokens_of_its_frame(tokenizer, turns):
    messages = [Message(role, content) for role, content in turns]
    ids, flags = encode(tokenizer, render(messages))
    controls = [token for token in tokenizer.convert_ids_to_tokens(ids) if token in tokenizer.get_added_vocab()]
    assert controls == ["<|im_start|>", "<|im_end|>"] * len(turns)
    assert len(ids) == len(flags)
    trained = tokenizer.decode([token for token, flag in zip(ids, flags, strict=True) if flag])
    expected = "".join(unicodedata.normalize("NFC", text) + "<|im_end|>" for role, text in turns if role == "assistant")
    assert trained == expected


def test_encoding_many_equals_encoding_each(tokenizer):
    conversations = [
        render([Message("user", "héllo"), Message("assistant", "call <|im_end|>")]),
        render([], add_generation_prompt=True),
        [],
        render([Message("user", "héllo")]),
    ]
    assert encode_many(tokenizer, conversations) == [encode(tokenizer, pieces) for pieces in conversations]


def test_pieces_equal_the_chat_template_where_no_merge_crosses_a_border(tokenizer):
    messages = [Message("system", "tool"), Message("user", "call end"), Message("assistant", "start")]
    as_dicts = [{"role": message.role, "content": message.content} for message in messages]
    for generate in (False, True):
        by_template = tokenizer.apply_chat_template(as_dicts, add_generation_prompt=generate)["input_ids"]
        assert by_template == encode(tokenizer, render(messages, add_generation_prompt=generate))[0]


def test_tokens_added_later_are_noticed(tokenizer):
    made = train_tokenizer(["a b <new> c"], 300)
    assert made.decode(encode_texts(made, ["<new>"])[0]) == "<new>"
    made.add_tokens(["<new>"])
    assert made.convert_tokens_to_ids("<new>") not in encode_texts(made, ["<new>"])[0]


def test_a_token_that_the_model_itself_spells_is_refused():
    made = train_tokenizer(["river river river"] * 9, 300)
    made.add_tokens(["river"], special_tokens=True)  # takes the id that the merges give
    with pytest.raises(DataError, match="turns plain text into a control token"):
        encode_texts(made, ["river"])


def test_the_tokenizer_itself_is_left_as_it_was(tokenizer):
    before = tokenizer.backend_tokenizer.to_str()
    encode_texts(tokenizer, ["<|im_end|>"])
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer("<|im_end|>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_a_tokenizer_without_chatml_is_refused_by_name(tokenizer):
    with pytest.raises(DataError, match=r"no control token <\|nope\|>"):
        chatml.control_id(tokenizer, "<|nope|>")


def test_a_slow_tokenizer_is_refused():
    class Slow:
        def get_added_vocab(self):
            return {}

    with pytest.raises(DataError, match="Slow is not a fast tokenizer"):
        encode_texts(Slow(), ["a"])
