"""Limits hold in characters and words, in English and Chinese, and a limit itself is allowed."""

import pytest

from data_formats import Comparison, Demonstration, Document, Message, Prompt
from data_formats.cleaning import Length
from data_formats.cleaning.units import mostly_unspaced, units

ENGLISH = Demonstration((Message("user", "Hello there"), Message("assistant", "It's five o'clock, isn't it?")))
CHINESE = Demonstration((Message("user", "你好"), Message("assistant", "现在是五点。")))


def test_words_of_texts_with_and_without_spaces():
    assert units("It's five o'clock, ISN'T it?") == ["it's", "five", "o'clock", "isn't", "it"]
    assert units("我用GPT-4写的。") == ["我", "用", "gpt", "4", "写", "的"]
    assert units("ＡＢＣ １２\u3000カタ") == ["abc", "12", "カ", "タ"]
    assert units("snake_case … !") == ["snake", "case"]
    assert mostly_unspaced(units("我用GPT写")) and not mostly_unspaced(units("the word 我 means I"))


@pytest.mark.parametrize(
    ("limits", "record", "reason"),
    [
        ({"min_prompt_chars": 3}, CHINESE, "prompt too short in characters"),
        ({"min_prompt_chars": 2}, CHINESE, None),
        ({"max_prompt_chars": 10}, ENGLISH, "prompt too long in characters"),
        ({"max_prompt_chars": 11}, ENGLISH, None),
        ({"min_reply_chars": 7}, CHINESE, "reply too short in characters"),
        ({"max_reply_chars": 5}, CHINESE, "reply too long in characters"),
        ({"min_reply_chars": 6, "max_reply_chars": 6}, CHINESE, None),
        ({"min_reply_words": 6}, ENGLISH, "reply too short in words"),
        ({"min_reply_words": 5, "max_reply_words": 5}, ENGLISH, None),
        ({"max_reply_words": 4}, CHINESE, "reply too long in words"),
        ({"max_reply_words": 5}, CHINESE, None),
        ({"max_reply_chars": 3}, Comparison((Message("user", "q"),), "abc", "abcd"), "reply too long in characters"),
        ({"min_prompt_chars": 1, "min_reply_chars": 3}, Document("ab"), "reply too short in characters"),
        ({"min_prompt_chars": 1, "min_reply_chars": 9}, Prompt((Message("user", "ab"),)), None),
        ({}, ENGLISH, None),
    ],
)
def test_limits(limits, record, reason):
    finding = Length(**limits).check(record)
    assert (finding.reason if finding else None) == reason


def test_every_reply_of_a_conversation_counts():
    talk = Demonstration((*CHINESE.messages, *ENGLISH.messages))
    assert Length(max_reply_chars=20).check(talk).reason == "reply too long in characters"
    assert Length(min_prompt_chars=14).check(talk) is None  # "你好", a line break, "Hello there"
    assert Length(min_prompt_chars=15).check(talk) is not None
