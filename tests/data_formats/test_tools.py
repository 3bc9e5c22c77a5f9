"""Tool definitions and calls, in the ways they are written."""

import json
from collections import Counter

import pytest

from data_formats import DataError, Demonstration, Message, ToolCall, read
from data_formats.tools import read_calls, read_tools
from data_formats.turns import read_turn

CALL = ToolCall("f", '{"x": "你"}')


@pytest.mark.parametrize(
    "value",
    [
        {"name": "f", "arguments": {"x": "你"}},
        {"name": "f", "parameters": {"x": "你"}},
        {"name": "f", "args": {"x": "你"}},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"x": "你"}},
        {"type": "function", "function": {"name": "f", "arguments": '{"x": "你"}'}},
        '{"name": "f", "arguments": {"x": "你"}}',
        '[{"name": "f", "arguments": "{\\"x\\": \\"你\\"}"}]',
    ],
)
def test_one_call_however_it_is_written(value):
    assert read_calls(value, "at", Counter()) == (CALL,)


def test_several_calls_and_no_arguments():
    given = [{"name": "f"}, {"name": "g", "arguments": "{}"}, {"name": "h", "arguments": []}]
    assert read_calls(given, "at", Counter()) == (ToolCall("f", "{}"), ToolCall("g", "{}"), ToolCall("h", "{}"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "field 'at': not JSON"),
        ({"arguments": {}}, "field 'at': expected a call {name, arguments}"),
        ({"name": 3}, "field 'at': expected a call {name, arguments}"),
        ({"name": "f", "arguments": "[1]"}, r"field 'at.arguments': expected an object, found \[1\]"),
    ],
)
def test_malformed_calls(value, message):
    with pytest.raises(DataError, match=message):
        read_calls(value, "at", Counter())


def test_functions_on_offer():
    for row in ({"tools": [{"name": "f"}]}, {"functions": '[{"name": "f"}]'}, {"tools": ['{"name": "f"}']}):
        assert read_tools(row, Counter()) == ('{"name": "f"}',)
    for row in ({}, {"tools": None}, {"tools": "[]"}, {"tools": ""}, {"tools": "null"}):
        assert read_tools(row, Counter()) == ()
    with pytest.raises(DataError, match="field 'tools': expected a list of function definitions"):
        read_tools({"tools": {"name": "f"}}, Counter())


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize("field", ["messages", "prompt", "chosen"])
@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_inside_a_system_turn_are_on_offer(field, name):
    tools = [{"name": "f"}, {"name": "g"}]
    expected = ('{"name": "f"}', '{"name": "g"}')
    for offered in (tools, json.dumps(tools)):
        turns = [SYSTEM | {name: offered}, {"role": "user", "content": "q"}]
        for row in ({field: turns}, {field: json.dumps(turns)}, {field: turns, "tools": tools[:1], "rejected": turns}):
            assert read_tools(row, Counter()) == expected
    sharegpt = [{"from": "system", "value": "s", name: json.dumps(tools)}]
    assert read_tools({field: sharegpt}, Counter()) == expected
    assert read_turn(turns[0], "m[0]", Counter()) == Message("system", "s")


@pytest.mark.parametrize("content", ["", None, "Let me look.", "absent"])
@pytest.mark.parametrize(
    "given",
    [
        {"function_call": {"name": "f", "arguments": '{"x": "你"}'}},
        {"function_call": '{"name": "f", "arguments": {"x": "你"}}'},
        {"function_calls": [{"name": "f", "arguments": {"x": "你"}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": {"x": "你"}}}], "function_call": None},
        {
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": "你"}}}],
            "function_call": {"name": "f", "arguments": '{"x": "你"}'},
        },
    ],
)
def test_an_older_call_is_a_call_whatever_the_content_is(given, content):
    turn = {"role": "assistant", "content": content} | given
    if content == "absent":
        del turn["content"]
    said = content if content == "Let me look." else ""
    assert read_turn(turn, "m[1]", Counter()) == Message("assistant", said, "", (CALL,))


def test_only_an_assistant_calls():
    with pytest.raises(DataError, match="only an assistant thinks or calls tools, found it in a turn of the user"):
        read_turn({"role": "user", "content": "q", "function_call": {"name": "f", "arguments": "{}"}}, "m", Counter())


def test_a_null_that_json_says_stays():
    (call,) = read_calls({"name": "f", "arguments": {"base": None}}, "at", Counter())
    assert call.arguments == '{"base": null}'


TURN = {"role": "user", "content": "q"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}


def test_a_column_s_nulls_leave_calls_and_tools_alone(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    other = {"function": {"name": "g", "arguments": {"b": {"c": [1, None]}, "d": '{"e": null}'}}}
    rows = [
        {
            "messages": [TURN, CALLED],
            "tools": [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}],
        },
        {
            "messages": [TURN, CALLED | {"tool_calls": [other]}],
            "tools": [{"name": "g", "parameters": {"properties": {}}}],
        },
        {"messages": [TURN, {"role": "assistant", "content": "r"}], "tools": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = read(tmp_path / "x.parquet", Demonstration)
    assert result.records == read(tmp_path / "x.jsonl", Demonstration).records
    assert result.records[1].messages[1].tool_calls[0].arguments == '{"b": {"c": [1, null]}, "d": "{\\"e\\": null}"}'
    assert result.records[1].tools == ('{"name": "g", "parameters": {"properties": {}}}',)
    assert result.report.repaired == {"a column's nulls removed from calls and tools": 2}


def test_parts_of_a_turn_from_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [  # a column gives every part the keys of all
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "Let me look."},
        {"type": "tool_call", "tool_call": {"name": "f", "arguments": {"x": "你"}}},
    ]
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": parts},
        {"role": "tool", "content": [{"type": "text", "text": "1"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "x.parquet")
    (record,) = read(tmp_path / "x.parquet", Demonstration).records
    assert record.messages[1] == Message("assistant", "Let me look.", "hm", (CALL,))
