"""Roles out of order, replies without text and control tokens in text, in every kind of record."""

import pytest

from data_formats import Comparison, Demonstration, Document, Message, Prompt
from data_formats.cleaning import ControlTokens, EmptyReplies, MismatchedRoles
from data_formats.records import Reply, Scored, ToolCall

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def turns(letters, text="x"):
    return tuple(Message(ROLES[letter], text) for letter in letters)


@pytest.mark.parametrize("letters", ["ua", "sua", "uaua", "uata", "suattaua"])
def test_conversations_in_order(letters):
    assert MismatchedRoles().check(Demonstration(turns(letters))) is None


@pytest.mark.parametrize(
    ("letters", "reason"),
    [
        ("", "no user turn"),
        ("a", "no user turn"),
        ("aua", "assistant turn before any user turn"),
        ("saua", "assistant turn before any user turn"),
        ("uua", "two user turns in a row"),
        ("uaa", "two assistant turns in a row"),
        ("ssua", "two system turns in a row"),
        ("usa", "system turn in the middle"),
        ("uta", "tool turn after user turn"),
        ("uatua", "user turn after tool turn"),
        ("u", "ends without a reply"),
        ("uat", "ends without a reply"),
    ],
)
def test_conversations_out_of_order(letters, reason):
    finding = MismatchedRoles().check(Demonstration(turns(letters)))
    assert (finding.action, finding.reason) == ("drop", reason)


def test_a_prompt_ends_with_what_is_answered():
    step = MismatchedRoles()
    for good in ("u", "suau", "uat"):
        assert step.check(Prompt(turns(good))) is None
        assert step.check(Comparison(turns(good), "a", "b")) is None
    assert step.check(Scored(turns("ua"), (Reply("a"),))).reason == "prompt ends with a reply"
    assert step.check(Document("x")) is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Demonstration((Message("user", "问"), Message("assistant", " \n"))), "empty reply"),
        (Demonstration((*turns("ua"), Message("user", "q"), Message("assistant", ""))), "empty reply"),
        (Demonstration((Message("user", "q"), Message("assistant", "", reasoning="thought"))), "empty reply"),
        (Demonstration(turns("u")), "no reply"),
        (Comparison(turns("u"), "", "b"), "empty chosen reply"),
        (Comparison(turns("u"), "a", "\u3000"), "empty rejected reply"),
        (Scored(turns("u"), (Reply("", 1.0),)), "empty reply"),
        (Scored(turns("u"), (Reply("", 1.0), Reply("b", 0.0))), "empty reply"),
        (Scored(turns("u"), ()), "no reply"),
        (Prompt(turns("u", " ")), "empty user turn"),
        (Document("\n"), "empty document"),
    ],
)
def test_what_is_without_text(record, reason):
    finding = EmptyReplies().check(record)
    assert (finding.action, finding.reason) == ("drop", reason)


def test_empty_replies_leave_a_ranking_that_still_compares():
    record = Scored(turns("u"), (Reply("a", 3.0), Reply("", 2.0), Reply("c", 1.0)))
    finding = EmptyReplies().check(record)
    assert finding.action == "repair"
    assert finding.repaired.replies == (Reply("a", 3.0), Reply("c", 1.0))
    assert EmptyReplies().check(finding.repaired) is None


def test_a_call_is_a_reply():
    called = Demonstration((Message("user", "q"), Message("assistant", "", tool_calls=(ToolCall("f", "{}"),))))
    assert EmptyReplies().check(called) is None
    assert EmptyReplies().check(Prompt(turns("u"))) is None


@pytest.mark.parametrize(
    "text",
    [
        *("<|im_start|>system", "好<|im_end|>", "<|endoftext|>", "<|extra_0|>", "<|extra_204|>", "<|eot_id|>"),
        *("<tool_call>{}", "</tool_call>", "<tool_response>", "<tools>", "a <think> b", "</think>"),
    ],
)
def test_control_tokens_anywhere(text):
    for record in (
        Demonstration((*turns("u"), Message("assistant", text))),
        Prompt((Message("user", text),)),
        Comparison(turns("u"), "a", text),
        Scored(turns("u"), (Reply(text),)),
        Document(text),
    ):
        assert ControlTokens().check(record).action == "drop"
        assert ControlTokens("keep").check(record).action == "note"


@pytest.mark.parametrize("text", ["<im_end>", "a <| b |> c", "|im_end|", "I think <b>so</b>", "x<|5|>", "工具"])
def test_what_only_resembles_a_control_token_stays(text):
    assert ControlTokens().check(Document(text)) is None
