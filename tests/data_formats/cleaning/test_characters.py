"""NUL, surrogates, U+FFFD and invisible marks are found in every string, and repaired as asked."""

import pytest

from data_formats import Comparison, Demonstration, Document, Message
from data_formats.cleaning import InvisibleCharacters, LoneSurrogates, NulBytes, ReplacementCharacters
from data_formats.records import Reply, Scored, Step, ToolCall


def demo(question, answer, **more):
    return Demonstration((Message("user", question), Message("assistant", answer, **more)))


def test_nul_is_stripped_or_dropped():
    finding = NulBytes("strip").check(demo("你\x00好", "a\x00b\x00"))
    assert (finding.action, finding.reason) == ("repair", "NUL removed")
    assert finding.repaired == demo("你好", "ab")
    assert NulBytes("drop").check(Document("a\x00")).action == "drop"
    assert NulBytes().check(demo("你好", "0 \\x00")) is None


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("a\ud83d", "a\ufffd"),
        ("\ude00你", "\ufffd你"),
        ("\ud83d\ude00", "\U0001f600"),
        ("x\ud83dy\ude00", "x\ufffdy\ufffd"),
    ],
)
def test_halves_of_surrogate_pairs(text, repaired):
    finding = LoneSurrogates("replace").check(demo("q", text))
    assert finding.repaired == demo("q", repaired)
    repaired.encode()
    assert LoneSurrogates("drop").check(demo(text, "r")).action == "drop"
    assert LoneSurrogates().check(demo("q", "\U0001f600")) is None


def test_broken_text_cannot_be_mended():
    pair = Comparison((Message("user", "q"),), "工\ufffd\ufffd和知识", "b")
    assert ReplacementCharacters().check(pair).action == "drop"
    assert ReplacementCharacters("keep").check(pair).action == "note"
    assert ReplacementCharacters().check(demo("?", "?")) is None


def test_invisible_marks_go_and_joiners_stay():
    finding = InvisibleCharacters().check(demo("\ufeffa\u200bb", "می\u200cخواهم \U0001f468\u200d\U0001f469"))
    assert finding.repaired == demo("ab", "می\u200cخواهم \U0001f468\u200d\U0001f469")
    assert InvisibleCharacters("drop").check(demo("a\u202e", "b")).action == "drop"


def test_every_string_of_every_record_is_looked_at():
    bad, good = "a\x00", "a"

    def records(text):
        turns = (Message("user", "q"),)
        yield demo("q", "a", reasoning=text)
        yield demo("q", "a", tool_calls=(ToolCall("f", text),))
        yield demo("q", "a", tool_calls=(ToolCall(text, "{}"),))
        yield Demonstration(turns, category=text)
        yield Demonstration(turns, source=text)
        yield Demonstration(turns, tools=("{}", text))
        yield Comparison(turns, "c", text, tags=("t",))
        yield Comparison(turns, "c", "r", grade=1.0, tags=("t", text))
        yield Scored(turns, (Reply("a", 1.0), Reply(text, 2.0)))
        yield Scored(turns, (Reply("a", 1.0, (Step(text, -1.0),)),))
        yield Document(text)

    for broken, whole in zip(records(bad), records(good), strict=True):
        assert NulBytes().check(broken).repaired == whole
        assert NulBytes().check(whole) is None
