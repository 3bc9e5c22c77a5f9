"""Tags of a row reach its record, whatever the kind, and are written again; other meanings of the field are told."""

from __future__ import annotations

import json

import pytest

from data_formats import Comparison, DataError, Demonstration, Prompt, Scored, read, write_jsonl
from data_formats.records import Document, tags_in, with_tags

ASKED = {"prompt": "How do I boil an egg?"}
ROWS = {
    Demonstration: {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    Comparison: ASKED | {"chosen": "good", "rejected": "bad"},
    Scored: ASKED | {"replies": [{"content": "good", "score": 1.0}, {"content": "bad", "score": 0.0}]},
    Prompt: ASKED | {"answer_key": 7},
}


def rows_at(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ROWS)
def test_tags_are_read_written_and_read_again(tmp_path, kind):
    instag = [{"tag": "烹饪", "explanation": "it is about food"}, {"tag": "how to", "explanation": "…"}]
    path = rows_at(tmp_path, ROWS[kind] | {"tags": ["cooking", "how to", "cooking"]}, ROWS[kind] | {"tags": instag})
    found = read(path, kind)
    assert [one.tags for one in found.records] == [("cooking", "how to"), ("烹饪", "how to")]
    assert not found.report.passed_over
    write_jsonl(tmp_path / "own.jsonl", found.records)
    assert "tags" in json.loads((tmp_path / "own.jsonl").read_text().splitlines()[0])
    again = read(tmp_path / "own.jsonl", kind).records
    assert again == found.records and [one.tags for one in again] == [one.tags for one in found.records]
    if kind is Prompt:
        assert again[0].columns == found.records[0].columns and again[0].columns["answer_key"] == 7
    changed = with_tags(again[0], ("new",))
    assert (
        changed.tags == ("new",) and with_tags(changed, ()).tags == () and with_tags(changed, again[0].tags) == again[0]
    )


def test_another_meaning_of_the_field_is_counted_kept_or_refused(tmp_path):
    assert (
        read(rows_at(tmp_path, ROWS[Demonstration] | {"tags": "a, b"}), Demonstration).report.passed_over["tags"] == 1
    )
    assert read(rows_at(tmp_path, ROWS[Scored] | {"tags": [1]}), Scored).report.passed_over["tags"] == 1
    (prompt,) = read(rows_at(tmp_path, ROWS[Prompt] | {"tags": {"a": 1}}), Prompt).records
    assert prompt.tags == () and prompt.columns["tags"] == {"a": 1}
    with pytest.raises(DataError, match="expected a list of strings"):
        read(rows_at(tmp_path, ROWS[Comparison] | {"tags": "a, b"}), Comparison)
    assert tags_in(["", None, "a"]) == ("a",) and tags_in("a") == () and tags_in(["a", 1]) == ()
    assert with_tags(Document("text"), ("a",)) == Document("text")
