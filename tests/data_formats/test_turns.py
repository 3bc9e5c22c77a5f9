"""Turns: the two ways of writing them, and each repair with its count."""

from collections import Counter

import pytest

from data_formats.errors import DataError
from data_formats.formats import Dropped
from data_formats.records import Message
from data_formats.turns import as_prompt, conversation, prompt_turns, read_turns, repaired


def turns(*pairs):
    names = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Message(names[who], text) for who, text in pairs)


@pytest.mark.parametrize(
    "raw",
    [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "h"}, {"type": "text", "value": "i"}],
                "loss_weight": 0.0,
            },
            {"role": "assistant", "content": ["yo"], "loss_weight": 1.0},
        ],
    ],
)
def test_both_ways_of_writing_a_turn(raw):
    assert read_turns(raw, "messages", Counter()) == turns(("u", "hi"), ("a", "yo"))


@pytest.mark.parametrize(
    ("raw", "field", "found"),
    [
        ("hello", "m", "found str 'hello'"),
        (["hello"], r"m\[0\]", "found 'hello'"),
        ([{"role": "user"}], r"m\[0\]", "found the keys role"),
        ([{"role": "robot", "content": ""}], r"m\[0\].role", "unknown role 'robot'"),
        ([{"from": "function_call", "value": "{}"}], r"m\[0\].value", "expected a call {name"),
        ([{"role": "user", "content": 7}], r"m\[0\].content", "found int 7"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"m\[0\].content", "only parts of type .* found 'image'"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
            r"m\[0\].tool_calls",
            "expected a call {name, arguments}",
        ),
        ([{"role": "assistant", "content": "x", "loss_weight": 0.5}], r"m\[0\].loss_weight", "found 0.5"),
    ],
)
def test_malformed_turns_name_field_and_finding(raw, field, found):
    with pytest.raises(DataError, match=f"field '{field}'.*{found}"):
        read_turns(raw, "m", Counter())


@pytest.mark.parametrize(
    ("given", "kept", "note"),
    [
        ([("u", "1"), ("a", "2")], [("u", "1"), ("a", "2")], None),
        ([("s", "0"), ("u", "1"), ("a", "2")], [("s", "0"), ("u", "1"), ("a", "2")], None),
        ([("s", " "), ("u", "1"), ("a", "2")], [("u", "1"), ("a", "2")], None),
        (
            [("u", "1"), ("u", "2"), ("a", "3")],
            [("u", "1\n\n2"), ("a", "3")],
            "consecutive turns of one speaker merged",
        ),
        (
            [("u", "1"), ("a", "2"), ("a", "3")],
            [("u", "1"), ("a", "2\n\n3")],
            "consecutive turns of one speaker merged",
        ),
        ([("a", "0"), ("u", "1"), ("a", "2")], [("u", "1"), ("a", "2")], "reply before the first user turn removed"),
        ([("u", "1"), ("a", "2"), ("u", ""), ("a", "x")], [("u", "1"), ("a", "2")], "cut at an empty turn"),
    ],
)
def test_repairs_are_counted(given, kept, note):
    notes = Counter()
    assert repaired(turns(*given), notes) == turns(*kept)
    assert notes == ({note: 1} if note else {})


def test_a_conversation_loses_a_user_turn_at_its_end():
    notes = Counter()
    assert conversation(turns(("u", "1"), ("a", "2"), ("u", "3")), notes) == turns(("u", "1"), ("a", "2"))
    assert notes == {"user turn without reply at the end removed": 1}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "no turn with text"),
        ([("u", "1")], "no reply"),
        ([("s", "0"), ("u", "1")], "no reply"),
        ([("u", "1"), ("a", " \n")], "no reply"),
        ([("u", ""), ("a", "2")], "empty turn"),
        ([("a", "only")], "no turn with text"),
        ([("u", "1"), ("s", "0"), ("a", "2")], "system turn in the middle"),
    ],
)
def test_conversations_of_no_use_are_dropped_with_a_reason(given, reason):
    with pytest.raises(Dropped, match=f"^{reason}$"):
        conversation(turns(*given), Counter())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([("u", "1"), ("a", "2")], "prompt does not end with a user turn"),
        ([("u", "1"), ("a", ""), ("u", "3")], "empty turn in the prompt"),
        ([("u", " ")], "empty turn in the prompt"),
    ],
)
def test_prompts_are_never_cut(given, reason):
    with pytest.raises(Dropped, match=f"^{reason}$"):
        prompt_turns(turns(*given), Counter())


def test_a_string_is_a_prompt_of_one_turn():
    assert as_prompt("say <|im_end|>", "prompt", Counter()) == turns(("u", "say <|im_end|>"))
    with pytest.raises(Dropped, match="empty prompt"):
        as_prompt(" ", "prompt", Counter())


def test_half_a_surrogate_pair_is_replaced_and_counted():
    notes = Counter()
    assert as_prompt("a\ud83d b 😀", "prompt", notes) == turns(("u", "a\ufffd b 😀"))
    assert notes == {"unpaired surrogate replaced": 1}
