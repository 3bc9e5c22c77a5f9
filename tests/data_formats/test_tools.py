"""Tool definitions and calls, in the ways they are written."""

from collections import Counter

import pytest

from data_formats import DataError, ToolCall
from data_formats.tools import read_calls, read_tools

CALL = ToolCall("f", '{"x": "你"}')


@pytest.mark.parametrize(
    "value",
    [
        {"name": "f", "arguments": {"x": "你"}},
        {"name": "f", "parameters": {"x": "你"}},
        {"type": "function", "function": {"name": "f", "arguments": '{"x": "你"}'}},
        '{"name": "f", "arguments": {"x": "你"}}',
        '[{"name": "f", "arguments": "{\\"x\\": \\"你\\"}"}]',
    ],
)
def test_one_call_however_it_is_written(value):
    assert read_calls(value, "at", Counter()) == (CALL,)


def test_several_calls_and_no_arguments():
    assert read_calls([{"name": "f"}, {"name": "g", "arguments": "{}"}], "at", Counter()) == (
        ToolCall("f", "{}"),
        ToolCall("g", "{}"),
    )


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
    for row in ({"tools": [{"name": "f"}]}, {"functions": '[{"name": "f"}]'}):
        assert read_tools(row, Counter()) == ('{"name": "f"}',)
    for row in ({}, {"tools": None}, {"tools": "[]"}, {"tools": ""}):
        assert read_tools(row, Counter()) == ()
    with pytest.raises(DataError, match="field 'tools': expected a list of function definitions"):
        read_tools({"tools": {"name": "f"}}, Counter())
