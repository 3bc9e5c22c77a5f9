"""Items: what is written is read again, the order says nothing of the source, and a bad row is named."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from align.feedback.items import FeedbackReply, load_items, new_item
from align.runtime.errors import MissingFileError
from align.runtime.files import write_json_lines
from data_formats import read
from data_formats.errors import DataError
from data_formats.records import Message, Prompt, Scored

ASKED = Prompt(
    (Message("system", "Be kind."), Message("user", "Why?\u202e<b>")),
    "knowledge",
    reference="42",
    tools=('{"name": "f"}',),
    columns={"tests": ["a", {"b": 1}], "tags": ["gone"], "none": None},
)
REPLIES = [
    FeedbackReply("", text, source, {"temperature": 1.0, "seed": 3}, "abc")
    for text, source in (("Because.\n", "old"), ("So.", "new"), ("\u0000 no", "new"))
]


def test_what_is_written_is_read_again(tmp_path):
    item = new_item(ASKED, REPLIES, tags=("why", "short"), round=2)
    write_json_lines(tmp_path / "items.jsonl", [item.row()])
    assert load_items(tmp_path / "items.jsonl") == [item]
    assert (item.asked.reference, item.asked.columns) == ("42", {"tests": ["a", {"b": 1}]})
    assert [one.id for one in item.replies] == ["r0", "r1", "r2"]
    assert item.reply("r1") is item.replies[1] and item.reply("r9") is None


def test_as_replies_without_a_score(tmp_path):
    item = new_item(ASKED, REPLIES, tags=("why",))
    write_json_lines(tmp_path / "items.jsonl", [item.row()])
    found = read(tmp_path / "items.jsonl", Scored)
    (record,) = found.records
    assert set(found.report.passed_over) == {"reference", "columns"}, "a scored record has no place for them"
    assert [(one.content, one.score) for one in record.replies] == [(one.reply, None) for one in item.replies]
    assert (record.prompt, record.category, record.tags, record.tools) == (
        item.prompt,
        "knowledge",
        ("why",),
        item.tools,
    )


def test_the_order_says_nothing_of_the_source():
    """Over many prompts each source stands everywhere, and the order is the same again."""
    prompts = [Prompt((Message("user", f"question {number}"),)) for number in range(200)]
    items = [new_item(prompt, REPLIES[:2]) for prompt in prompts]
    first = Counter(item.replies[0].source for item in items)
    assert 60 < first["old"] < 140
    assert items == [new_item(prompt, REPLIES[:2]) for prompt in prompts]
    assert len({item.id for item in items}) == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"replies": []}, "line 1, field 'replies': is empty"),
        ({"replies": [{"id": "r0"}]}, r"replies\[0\].reply"),
        ({"replies": [{"id": "a", "reply": "x"}, {"id": "a", "reply": "y"}]}, "the same id"),
        ({"prompt": "hello"}, "expected a list, found 'hello'"),
        ({"id": 3}, "expected a text, found 3"),
        ({"tags": [1]}, "list of texts"),
    ],
)
def test_a_row_that_is_no_item(tmp_path, change, said):
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps(new_item(ASKED, REPLIES).row() | change))
    with pytest.raises(DataError, match=said):
        load_items(file)


def test_no_file_no_json_and_an_id_twice(tmp_path):
    with pytest.raises(MissingFileError, match="align collect"):
        load_items(tmp_path / "none.jsonl")
    file, line = tmp_path / "items.jsonl", json.dumps(new_item(ASKED, REPLIES).row())
    file.write_text(f"{line}\n{line}\n")
    with pytest.raises(DataError, match="line 2, field 'id'"):
        load_items(file)
    file.write_text(f"{line}\n{{")
    with pytest.raises(DataError, match="line 2"):
        load_items(file)
