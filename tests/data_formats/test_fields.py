"""No key is passed over unseen: read, known to be harmless, counted and shown, or refused by name."""

import json
from collections import Counter

import pytest

from data_formats import Comparison, DataError, Demonstration, Document, Prompt, Scored, read
from data_formats.fields import HARMLESS, Fields, objects

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
LABELLED = {"prompt": "q", "completion": "r", "label": True}


def read_rows(tmp_path, kind, *rows, **options):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read(path, kind, **options)


def test_fields_remember_what_was_asked_for():
    row = Fields({"a": 1, "b": 2, "c": None, "id": 3, "d": ""}, "rows[4]")
    assert (row["a"], row.get("z"), "b" in row, list(row)) == (1, None, True, ["a", "b", "c", "id", "d"])
    assert row.unread() == ["b", "id"]  # what is empty says nothing
    notes = Counter()
    row.pass_over(notes)
    assert notes == {"rows[].b": 1}


def test_objects_account_for_each_of_their_keys():
    notes = Counter()
    assert [one["x"] for one in objects({"list": [{"x": 1, "y": 2}, {"x": 3}]}, "list", notes)] == [1, 3]
    assert notes == {"list[].y": 1}
    with pytest.raises(DataError, match="field 'list': expected a list of objects"):
        list(objects({"list": [3]}, "list", notes))


@pytest.mark.parametrize(
    ("kind", "row", "passed_over"),
    [
        (Demonstration, {"messages": [U, A], "foo": 1}, {"foo": 1}),
        (
            Demonstration,
            {"messages": [U | {"foo": 1}, A | {"foo": 2, "bar": 3}]},
            {"messages[].foo": 1, "messages[].bar": 1},
        ),
        (
            Demonstration,
            {"messages": [U, A | {"content": [{"type": "text", "text": "r", "foo": 1}]}]},
            {"messages[].content[].foo": 1},
        ),
        (
            Demonstration,
            {"messages": [U, A | {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}, "foo": 1}}]}]},
            {"messages[].tool_calls.foo": 1},
        ),
        (Demonstration, {"instruction": "q", "output": "r", "text": "q r"}, {"text": 1}),
        (Demonstration, {"instruction": "q", "instances": [{"output": "r", "foo": 1}]}, {"instances[].foo": 1}),
        (Comparison, PAIR | {"foo": {"a": 1}}, {"foo": 1}),
        (Comparison, PAIR | {"chosen": A | {"foo": 1}}, {"chosen.foo": 1}),
        (Scored, LABELLED | {"foo": [1]}, {"foo": 1}),
        (
            Scored,
            {"prompt": "q", "replies": [{"content": "a", "score": 1, "steps": [{"text": "a", "foo": 1}], "bar": 1}]},
            {"replies[].bar": 1, "replies[].steps[].foo": 1},
        ),
        (Prompt, {"messages": [U | {"foo": 1}]}, {"messages[].foo": 1}),
        (Prompt, {"prompt": "q", "foo": 1}, {}),  # a column for the reward function
        (Document, {"text": "t", "foo": 1}, {"foo": 1}),
        (Demonstration, {"messages": [U | {"name": "Ann"}, A], "id": 7, "url": "u", "foo": None, "bar": ""}, {}),
    ],
)
def test_every_other_key_is_counted_and_shown(tmp_path, kind, row, passed_over):
    report = read_rows(tmp_path, kind, row, row).report
    assert report.passed_over == {key: 2 * count for key, count in passed_over.items()}
    assert ("fields passed over: " in report.describe()) == bool(passed_over)
    for key in passed_over:
        assert f"{key} 2" in report.describe()


def test_only_rows_that_are_used_count(tmp_path):
    report = read_rows(tmp_path, Comparison, PAIR | {"foo": 1}, PAIR | {"foo": 1, "chosen": "bad"}).report
    assert (report.dropped, report.passed_over) == ({"identical replies": 1}, {"foo": 1})


def test_twenty_keys_are_named_and_a_thousand_counted(tmp_path):
    rows = PAIR | {f"k{number:02}": 1 for number in range(23)} | {"\x1b[2J" + "x" * 99: 1}
    report = read_rows(tmp_path, Comparison, rows).report
    assert len(report.passed_over) == 24
    assert report.describe().endswith("k18 1, and 4 more")
    assert max(map(len, report.passed_over)) < 70
    rows = [PAIR | {f"k{at}.{number}": 1 for number in range(600)} for at in range(2)]
    report = read_rows(tmp_path, Comparison, *rows).report
    assert (len(report.passed_over), report.passed_over["further fields"]) == (1001, 200)


@pytest.mark.parametrize(
    ("kind", "row", "field"),
    [
        (Demonstration, {"messages": [U, A], "history": [["a", "b"]]}, "history"),
        (Demonstration, {"messages": [U, A], "context": "It began in 2000."}, "context"),
        (Demonstration, {"messages": [U, A], "reasoning": "because"}, "reasoning"),
        (Demonstration, {"messages": [U, A], "function_call": {"name": "f", "arguments": "{}"}}, "function_call"),
        (Demonstration, {"messages": [U, A], "weight": 0.5}, "weight"),
        (Demonstration, {"messages": [U, A], "videos": ["v.mp4"]}, "videos"),
        (Demonstration, {"messages": [U, A | {"images": ["v.png"]}]}, "messages[1].images"),
        (Demonstration, {"messages": [U, A | {"tools": [{"name": "f"}]}]}, "messages[1].tools"),
        (Comparison, {"chosen": [U, A], "rejected": [U, A | {"content": "s"}], "history": [["a", "b"]]}, "history"),
        (Comparison, PAIR | {"reasoning": "because"}, "reasoning"),
        (Comparison, PAIR | {"weight": 0.5}, "weight"),
        (Scored, LABELLED | {"train": "maybe"}, "train"),
        (Prompt, {"messages": [U], "history": [["a", "b"]]}, "history"),
        (Prompt, {"messages": [U], "context": "It began in 2000."}, "context"),
    ],
)
def test_a_known_meaning_that_cannot_be_honoured_is_refused_by_name(tmp_path, kind, row, field):
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path, kind, row)
    assert (caught.value.field, caught.value.line) == (field, 1)


def test_the_lists_do_not_meet():
    from data_formats.detection import _MEANT, _UNSUPPORTED

    assert not HARMLESS & (_MEANT.keys() | _UNSUPPORTED.keys())
