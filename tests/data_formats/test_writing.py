"""Our own rows: what is written, the round trip, and failures that leave the old file alone."""

import json

import pytest

from data_formats import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Reply,
    Scored,
    Step,
    StorageError,
    ToolCall,
    read,
    write_jsonl,
)
from data_formats.writing import as_row

U, A = (lambda text, role=role: Message(role, text) for role in ("user", "assistant"))
TOOLS = ('{"name": "f", "parameters": {"é": 1}}', '{"name": "g"}')
CALL = ToolCall("f", '{"x": [1, "\u4f60"]}')
CALLED = (U("q"), Message("assistant", "", "I think", (CALL, CALL)), Message("tool", "4"), Message("tool", ""))
RECORDS = {
    Demonstration: [
        Demonstration((Message("system", "s"), U("q <|im_end|>"), A("r\u2028\n")), "maths", "world"),
        Demonstration((U("你好"), A("好"))),
        Demonstration((*CALLED, Message("assistant", "r", "why")), "c", "s", TOOLS),
        Demonstration((U("q"), CALLED[1]), tools=TOOLS),
    ],
    Comparison: [
        Comparison((U("q"), A("a"), U("p")), "good", "bad", 0.5, "c", "s", ("correctness", "x")),
        Comparison((U("q"),), "good", "bad"),
        Comparison(CALLED, "good", "bad", tools=TOOLS),
    ],
    Scored: [
        Scored((U("q"),), (Reply("a", 1.0), Reply("b", -0.5), Reply("c")), "c", "s", ("t",), TOOLS),
        Scored(CALLED, (Reply("a\nb", None, (Step("a", 1.0), Step("b"))),)),
    ],
    Prompt: [Prompt((U("q"),), "c", "r", "s"), Prompt((U("q"), A("a"), U("p"))), Prompt(CALLED, tools=TOOLS)],
    Document: [Document("text\n\ntext", "s"), Document("b")],
}


@pytest.mark.parametrize("kind", list(RECORDS))
def test_round_trip(tmp_path, kind):
    write_jsonl(tmp_path / "deep" / "x.jsonl", RECORDS[kind])
    result = read(tmp_path / "deep" / "x.jsonl", kind)
    assert result.records == RECORDS[kind]
    assert (result.report.rows, result.report.dropped, result.report.repaired) == (len(RECORDS[kind]), {}, {})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.jsonl"]


def test_rows_hold_only_what_is_there():
    turns = [{"role": "user", "content": "q"}]
    assert as_row(Comparison((U("q"),), "x", "y")) == {"prompt": turns, "chosen": "x", "rejected": "y"}
    assert as_row(Prompt((U("q"),), reference="r")) == {"prompt": turns, "reference": "r"}


def test_a_failure_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [Document("old")])

    def failing():
        yield Document("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"x\.jsonl: cannot be written \(No space left on device\)"):
        write_jsonl(path, failing())
    assert json.loads(path.read_text()) == {"text": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_jsonl(tmp_path / "file" / "x.jsonl", [])


def test_half_a_surrogate_pair_of_a_record_made_by_hand_is_written_as_an_escape(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [Document("a\ud83d", "s\ud83d")])
    assert json.loads((tmp_path / "x.jsonl").read_text(encoding="utf-8")) == {"text": "a\ud83d", "source": "s\ud83d"}
    assert read(tmp_path / "x.jsonl", Document).records == [Document("a\ufffd", "s\ufffd")]
