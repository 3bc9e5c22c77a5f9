"""Rendered ids equal those of each Qwen release's own chat template."""

import json

import pytest

from data_formats.chatml import CHAT_TEMPLATE, default_system_turn, encode, render
from data_formats.errors import DataError
from data_formats.records import Message, ToolCall
from tests.qwen_tokenizers import as_dicts, qwen

RELEASES = ("1.5", "2", "2.5", "3", "ours")
THINKING = {"3": "template"}  # Qwen 3 gives the last reply a block of thoughts
TALK = [
    Message("system", "It is one."),
    Message("user", "héllo 你好!"),
    Message("assistant", "The rain."),
    Message("user", "two"),
    Message("assistant", "It is, two."),
]
WEATHER = '{"type": "function", "function": {"name": "weather", "parameters": {"b": 1, "a": "é"}}}'
TOOLS = [
    Message("system", "It is one."),
    Message("user", "weather"),
    Message("assistant", "", tool_calls=(ToolCall("weather", '{"city":"Nürnberg","b":[1,2]}'),)),
    Message("tool", "12 °C."),
    Message("tool", "rain"),
    Message("assistant", "It is. ", tool_calls=(ToolCall("one", "{}"), ToolCall("two", "{}"))),
    Message("tool", "[1]"),
    Message("assistant", "The rain."),
]


def ours(release, tokenizer, messages, **options):
    return encode(tokenizer, render(messages, thinking=THINKING.get(release, "keep"), **options))[0]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5])
def test_ids_equal_the_template_when_a_system_turn_is_given(release, turns):
    tokenizer, generate = qwen(release), TALK[turns - 1].role == "user"
    expected = tokenizer.apply_chat_template(as_dicts(TALK[:turns]), add_generation_prompt=generate)["input_ids"]
    assert ours(release, tokenizer, TALK[:turns], add_generation_prompt=generate) == expected


@pytest.mark.parametrize("release", RELEASES)
def test_without_one_they_equal_it_under_its_default(release):
    tokenizer, asked = qwen(release), TALK[1:]
    default = default_system_turn(tokenizer)
    expected = tokenizer.apply_chat_template(as_dicts(asked))["input_ids"]
    assert ours(release, tokenizer, asked if default is None else [default, *asked]) == expected


def test_what_the_defaults_are():
    found = {release: default_system_turn(qwen(release)) for release in RELEASES}
    assert found["1.5"] == found["2"] == Message("system", "You are a helpful assistant.")
    assert found["2.5"].content.startswith("You are Qwen, created by Alibaba Cloud.")
    assert found["3"] is found["ours"] is None


def test_a_tokenizer_without_template_has_no_default():
    tokenizer = qwen("ours")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="set default_system to none"):
        default_system_turn(tokenizer)


@pytest.mark.parametrize("release", ["2.5", "3", "ours"])
@pytest.mark.parametrize("offered", [(), (WEATHER,), (WEATHER, '{"name": "one"}')])
def test_tool_conversations_equal_the_template(release, offered):
    tokenizer = qwen(release)
    tools = [json.loads(tool) for tool in offered] or None
    expected = tokenizer.apply_chat_template(as_dicts(TOOLS), tools=tools)["input_ids"]
    assert ours(release, tokenizer, TOOLS, tools=offered) == expected


def test_thoughts_equal_the_template_of_qwen_3():
    tokenizer = qwen("3")
    talk = [*TALK[:2], Message("assistant", "The rain.", reasoning="one\ntwo"), TALK[3]]
    talk.append(Message("assistant", "two", reasoning="It is."))
    expected = tokenizer.apply_chat_template(as_dicts(talk))["input_ids"]
    assert ours("3", tokenizer, talk) == expected
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert expected.count(think) == 1 and encode(tokenizer, render(talk))[0].count(think) == 2


@pytest.mark.parametrize("messages", [TALK, TALK[1:], TOOLS, TOOLS[1:], [Message("user", "x'y\n"), *TALK[2:3]]])
@pytest.mark.parametrize("offered", [(), (WEATHER,)])
@pytest.mark.parametrize("generate", [False, True])
def test_our_template_writes_what_render_does(messages, offered, generate):
    tokenizer = qwen("ours")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    text = tokenizer.apply_chat_template(
        as_dicts(messages),
        tools=[json.loads(tool) for tool in offered] or None,
        tokenize=False,
        add_generation_prompt=generate,
    )
    assert text == "".join(piece.text for piece in render(messages, tools=offered, add_generation_prompt=generate))


def test_marks_are_tokens_only_where_the_format_writes_them():
    tokenizer = qwen("3")
    marks = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<think>", "<tool_call>", "<tool_response>")}
    typed = [Message("user", "<think><tool_call><tool_response>"), Message("assistant", "<tool_call>")]
    assert not marks & set(encode(tokenizer, render(typed))[0])
    assert marks & set(encode(tokenizer, render(TOOLS))[0])
    spelled = encode(qwen("2"), render(TOOLS))[0]
    assert "<tool_response>\n12 °C.\n</tool_response>" in qwen("2").decode(spelled)
